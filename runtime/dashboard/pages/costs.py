"""What language models cost: by day, by handler and model, and how far budgets are spent."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.dashboard.charts import day_bars
from runtime.dashboard.context import context_of

_DAYS: Final = (7, 30, 90, 400)
_USUAL: Final = 30
_FIGURES: Final = ("calls", "tokens_in", "tokens_out", "cost")


async def costs_page(request: Request) -> HTMLResponse:
    """Return the page."""
    context = context_of(request)
    return await context.page("costs.html", active="agents", events="", **await _costs(request))


async def figures(request: Request) -> HTMLResponse:
    """Return the part that changes."""
    return context_of(request).part("_costs.html", **await _costs(request))


async def _costs(request: Request) -> dict[str, Any]:
    context, given = context_of(request), request.query_params.get("days", "")
    days = int(given) if given in map(str, _DAYS) else _USUAL
    told = await context.stream.views.usage(days)
    stats = await context.live_state.stats.get()
    today = datetime.now(UTC).date()
    by_day = {each["day"]: each for each in _sums(told, "day")}
    span = [today - timedelta(days=ago) for ago in reversed(range(days))]
    costs = [float(by_day[day.isoformat()]["cost"]) if day.isoformat() in by_day else 0.0 for day in span]
    return {
        "days": days, "spans": _DAYS, "sums": _sum(told), "today": by_day.get(today.isoformat()),
        "month": _sum(each for each in told if _is_of_month(each["day"], today)) if days > 30 else None,
        "bars": day_bars(costs, [day.isoformat() for day in span]), "most": max(costs), "first": span[0].isoformat(),
        "by_day": sorted(by_day.values(), key=lambda each: str(each["day"]), reverse=True),
        "by_handler": sorted(_sums(told, "handler", "model"), key=lambda each: (-each["cost"], each["handler"])),
        "budgets": [each for each in stats["subscriptions"] if each["budget"] or each["held"]],
    }  # fmt: skip


def _sums(told: Iterable[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The sums of what was told under the same values of these names."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for each in told:
        groups.setdefault(tuple(each[name] for name in names), []).append(each)
    return [{**dict(zip(names, of, strict=True)), **_sum(each)} for of, each in groups.items()]


def _sum(told: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    rows: Sequence[Mapping[str, Any]] = list(told)
    return {name: sum(each[name] for each in rows) for name in _FIGURES}


def _is_of_month(day: str, today: date) -> bool:
    return day[:7] == today.isoformat()[:7]
