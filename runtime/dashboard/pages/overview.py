"""The last hour on one screen: throughput, errors and latency, the agents, and what to mend first."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.dashboard.activity import SubscriptionActivity
from runtime.dashboard.charts import Bar, spark
from runtime.dashboard.context import DashboardContext, context_of
from runtime.dashboard.pages.stream import told
from runtime.dashboard.trouble import severity, state_of, troubles

_SHOWN = 6


async def overview_page(request: Request) -> HTMLResponse:
    """Return the page."""
    context = context_of(request)
    return await context.page("overview.html", active="overview", events="", **await _overview(context))


async def figures(request: Request) -> HTMLResponse:
    """Return the part that changes."""
    context = context_of(request)
    return context.part("_overview.html", **await _overview(context))


async def _overview(context: DashboardContext) -> dict[str, Any]:
    state = context.live_state
    stats, hours = await state.stats.get(), await state.activity.get()
    webhooks = {each["name"]: each for each in await state.webhooks.get()}
    found = troubles(
        stats, hours, await state.dead_groups.get(), await state.flow.get(), context.schemas.declared
    )
    used = [each["usage_today"] for each in stats["subscriptions"] if each["usage_today"]]
    return {
        "hour": hour_of(list(hours.values())),
        "now": sum(each["done_last_minute"] + each["failed_last_minute"] for each in stats["subscriptions"]),
        "agents": agents_of(stats["subscriptions"], hours, webhooks),
        "troubles": found[:_SHOWN],
        "more": len(found) - _SHOWN,
        "waiting": sum(each["waiting"] for each in stats["subscriptions"]),
        "running": sum(each["running"] for each in stats["subscriptions"]),
        "about": any(each["about"] for each in stats["subscriptions"]),
        "lag": max((each["lag_seconds"] or 0 for each in stats["subscriptions"]), default=0),
        "spent": sum(each["cost"] for each in used) if used else None,
        "latest": (await told(context, await state.latest.get()))["messages"],
    }


def hour_of(hours: Sequence[SubscriptionActivity]) -> dict[str, Any]:
    """Return the totals of the last hour with their charts, a minute a bar."""
    done = [sum(minute) for minute in zip(*(each.done for each in hours), strict=True)] or [0] * 60
    failed = [sum(minute) for minute in zip(*(each.failed for each in hours), strict=True)] or [0] * 60
    spent = [
        sum(many * mean for many, mean in minute)
        for minute in zip(*(zip(each.done, each.seconds, strict=True) for each in hours), strict=True)
    ] or [0.0] * 60
    # Bars are whole numbers: microseconds.
    latency = [round(1e6 * total / many) if many else 0 for total, many in zip(spent, done, strict=True)]
    amount = sum(done) + sum(failed)
    return {
        "done": sum(done),
        "failed": sum(failed),
        "share": sum(failed) / amount if amount else 0.0,
        "latency": sum(spent) / sum(done) if sum(done) else None,
        "charts": {
            "attempts": _chart(done, failed),
            "errors": _chart([0] * 60, failed),
            "latency": _chart(latency, [0] * 60),
        },
    }


def _chart(good: Sequence[int], bad: Sequence[int]) -> tuple[list[Bar], int]:
    """Return the bars and the value of the highest."""
    return spark(good, bad), max(map(sum, zip(good, bad, strict=True)))


def agents_of(
    subscriptions: Sequence[Mapping[str, Any]],
    hours: Mapping[int, SubscriptionActivity],
    webhooks: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return a line for each agent, those in trouble first, then the busiest."""
    grouped: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for each in subscriptions:
        grouped[each["agent"]].append(each)
    lines = []
    for agent, handlers in grouped.items():
        own = [hours.get(each["id"]) or SubscriptionActivity() for each in handlers]
        needs = [severity(each, hour) for each, hour in zip(handlers, own, strict=True)]
        states = [state_of(each, webhooks.get(each["name"])) for each in handlers]
        worst = max(needs)
        # A handler that was renamed leaves a subscription without worker: that does not make its agent one.
        state = states[needs.index(worst)] if worst or "live" not in states else "live"
        hour = hour_of(own)
        lines.append({
            "agent": agent, "handlers": len(handlers), "severity": worst, "state": state, "hour": hour,
            "waiting": sum(each["waiting"] + each["scheduled"] for each in handlers),
            "about": any(each["about"] for each in handlers),
            "running": sum(each["running"] for each in handlers),
            "per_minute": sum(each["done_last_minute"] + each["failed_last_minute"] for each in handlers),
            "lag": max((each["lag_seconds"] or 0 for each in handlers), default=0),
            "dead": sum(each["dead"] for each in handlers),
        })  # fmt: skip
    lines.sort(key=lambda line: (-line["hour"]["done"] - line["hour"]["failed"], line["agent"]))
    # An agent without worker and without work is one of the past.
    return sorted(lines, key=lambda line: (-line["severity"], line["state"] == "no worker"))
