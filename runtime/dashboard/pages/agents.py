"""The agents: handlers, throughput, failures, backlog; pause, resume and replay."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.agent.schedule import readable, upcoming
from runtime.dashboard.activity import SubscriptionActivity
from runtime.dashboard.charts import spark
from runtime.dashboard.context import context_of
from runtime.dashboard.trouble import severity, state_of
from runtime.errors import StoreError
from runtime.message import moment

_NEXT = 3
_SPANS = {"10": "the last 10 minutes", "60": "the last hour", "1440": "the last day", "": "all there is"}


async def agents_page(request: Request) -> HTMLResponse:
    """Return the page."""
    context = context_of(request)
    return await context.page("agents.html", active="agents", events="", **await _agents(request))


async def table(request: Request) -> HTMLResponse:
    """Return the table alone."""
    return context_of(request).part("_agents.html", **await _agents(request))


async def pause(request: Request) -> HTMLResponse:
    """Pause a subscription."""
    await context_of(request).stream.operations.pause(request.path_params["name"])
    return await _changed(request)


async def resume(request: Request) -> HTMLResponse:
    """Resume it."""
    await context_of(request).stream.operations.resume(request.path_params["name"])
    return await _changed(request)


async def remove(request: Request) -> HTMLResponse:
    """Remove a subscription that no worker serves, with what waits for it."""
    await context_of(request).stream.operations.remove(request.path_params["name"])
    return await _changed(request)


async def replay(request: Request) -> HTMLResponse:
    """Count what a replay would deliver again; with `sure`, do it."""
    context, name, form = context_of(request), request.path_params["name"], await request.form()
    minutes = str(form.get("minutes", ""))
    minutes = minutes if minutes in _SPANS else ""
    pattern = str(form.get("pattern") or ">")
    since = datetime.now(UTC) - timedelta(minutes=int(minutes)) if minutes else None
    is_sure = form.get("sure") == "yes"
    fault, answer = None, None
    try:
        answer = await context.stream.operations.replay(
            name, since=since, pattern=pattern, dry_run=not is_sure
        )
    except (StoreError, ValueError) as error:
        fault = str(error)
    if is_sure:
        context.live_state.changed()
    return context.part(
        "_replay.html", name=name, minutes=minutes, span=_SPANS[minutes], pattern=pattern, is_sure=is_sure,
        answer=answer, fault=fault,
    )  # fmt: skip


async def _changed(request: Request) -> HTMLResponse:
    context = context_of(request)
    context.live_state.changed()
    return await table(request)


async def _agents(request: Request) -> dict[str, Any]:
    """Return the agents that the filter means, those in trouble first; apart, handlers without a worker and work."""
    context = context_of(request)
    given = await request.form() if request.method == "POST" else request.query_params
    sought, shows_gone = str(given.get("q") or "").strip(), given.get("gone") == "1"
    stats, hours = await context.live_state.stats.get(), await context.live_state.activity.get()
    timers = {each["name"]: each for each in await context.live_state.schedules.get()}
    webhooks = {each["name"]: each for each in await context.live_state.webhooks.get()}
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    gone: list[dict[str, Any]] = []
    for each in stats["subscriptions"]:
        if sought.lower() not in " ".join([each["name"], *each["patterns"]]).lower():
            continue
        hour = hours.get(each["id"]) or SubscriptionActivity()
        webhook = webhooks.get(each["name"])
        told = {
            **each,
            "state": state_of(each, webhook),
            "handler": each["name"].partition(".")[2],
            "spark": spark(hour.done, hour.failed),
            "peak": max(good + bad for good, bad in zip(hour.done, hour.failed, strict=True)),
            "latency": hour.latency,
            "webhook": webhook,
            "timer": _timer(timers.get(each["name"])),
            "done_hour": sum(hour.done),
            "failed_hour": sum(hour.failed),
        }
        # A failure of long ago that left dead letters comes after all that goes on.
        told["trouble"] = (severity(each, hour), each["dead"] > 0, told["failed_hour"])
        is_idle = not (
            each["waiting"]
            or each["scheduled"]
            or each["suspended"]
            or each["undoing"]
            or told["done_hour"]
            or told["failed_hour"]
        )
        if told["state"] == "no worker" and is_idle and not webhook:
            gone.append(told)
        else:
            grouped[each["agent"]].append(told)
    for handlers in grouped.values():
        handlers.sort(key=lambda each: str(each["name"]))
        handlers.sort(key=itemgetter("trouble"), reverse=True)
    agents = dict(sorted(grouped.items()))
    agents = dict(sorted(agents.items(), key=lambda item: item[1][0]["trouble"], reverse=True))
    return {
        "agents": agents, "gone": sorted(gone, key=lambda each: str(each["name"])), "shows_gone": shows_gone,
        "sought": sought, "spans": _SPANS, "workers": stats["workers"], "is_first": not stats["subscriptions"],
    }  # fmt: skip


def _timer(told: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a timer's schedule, its last slot and its next ones."""
    if told is None:
        return None
    slots = upcoming(told["spec"], moment(told["last_slot"]), datetime.now(UTC), _NEXT)
    return {
        "spec": readable(told["spec"]), "missed": told["missed"], "last": told["last_slot"],
        "next": [slot.isoformat() for slot in slots],
    }  # fmt: skip
