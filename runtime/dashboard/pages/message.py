"""One message: its cause, each attempt, its effects; deliver it again, or cancel it."""

from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.dashboard.charts import waterfall
from runtime.dashboard.context import DashboardContext, context_of
from runtime.dashboard.filters import is_open
from runtime.errors import StoreError


async def message_page(request: Request) -> HTMLResponse:
    """Return the page."""
    context, number = context_of(request), request.path_params["id"]
    story = await _story(context, number)
    if story is None:
        return await context.page(
            "missing.html", active="stream", status=404, events="",
            what=f"Message #{number}", why="It was never written, or it was removed by retention.",
        )  # fmt: skip
    return await context.page("message.html", active="stream", events="", said=None, **story)


async def story(request: Request) -> HTMLResponse:
    """Return the part that changes while the message is handled."""
    context, number = context_of(request), request.path_params["id"]
    return await _part(context, number, None)


async def _part(context: DashboardContext, number: int, said: str | None) -> HTMLResponse:
    """Return the part that changes; the message may have been removed meanwhile."""
    found = await _story(context, number)
    if found is None:
        return HTMLResponse(
            context.text("_said.html", said=f"#{number} is no longer there.", is_bad=True), 404
        )
    return context.part("_story.html", **found | {"said": said})


async def deliver(request: Request) -> HTMLResponse:
    """Deliver it to a subscription again."""
    context, number = context_of(request), request.path_params["id"]
    name = str((await request.form()).get("subscription", ""))
    try:
        answer = await context.stream.operations.replay(name, ids=[number])
    except StoreError as error:
        said = str(error)
    else:
        said = (
            f"#{number} is delivered to {name} again."
            if answer["replayed"]
            else f"Nothing to do: #{number} still waits for {name}, or {name} does not listen to its key."
        )
    context.live_state.changed()
    return await _part(context, number, said)


async def cancel(request: Request) -> HTMLResponse:
    """Cancel a subscription's delivery of it, as a dead letter."""
    context, number = context_of(request), request.path_params["id"]
    name = str((await request.form()).get("subscription", ""))
    try:
        answer = await context.stream.operations.cancel(number, name)
    except StoreError as error:
        said = str(error)
    else:
        said = {
            "ended": f"{name} will not handle #{number}: it is a dead letter now.",
            "undoing": f"The finished steps of {name} are undone: then #{number} is a dead letter.",
            "told": f"The worker is told: #{number} is a dead letter as soon as {name} has stopped.",
        }.get(
            next((each["state"] for each in answer["deliveries"]), ""),
            f"Nothing waits or runs for #{number} of {name} any more.",
        )
    context.live_state.changed()
    return await _part(context, number, said)


async def _story(context: DashboardContext, number: int) -> dict[str, Any] | None:
    trace = await context.stream.views.trace(number)
    by_id = {each["id"]: each for each in trace["messages"]}
    message = by_id.get(number)
    if message is None:
        return None
    names = {each["subscription"] for each in message["handled"]}
    others = [
        each["name"]
        for each in (await context.live_state.stats.get())["subscriptions"]
        if each["name"] not in names
    ]
    return {
        "message": message,
        "messages": trace["messages"],
        "more": trace["more"],
        "others": others,
        "chart": waterfall(trace["messages"]),
        "is_open": any(is_open(each["handled"]) for each in trace["messages"]),
    }
