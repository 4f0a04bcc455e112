"""The dead letters by error; redrive one, a group, or an edited value, or discard them."""

from datetime import UTC, datetime, timedelta
from difflib import unified_diff
from typing import Any, Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from runtime.agent.step_names import label_of
from runtime.client.dead_letters import DeadLetterFilter
from runtime.dashboard.context import DashboardContext, context_of, number_of
from runtime.dashboard.filters import pretty
from runtime.encoding.json import decode
from runtime.errors import RuntimeFault
from runtime.message import moment

SPANS: Final = {"10": "the last 10 minutes", "60": "the last hour", "1440": "the last day", "": "any time"}
_SHOWN, _LETTERS = 5, 100
# A group that grew within this time is a fault that goes on.
_FRESH: Final = timedelta(minutes=10)


async def dead_page(request: Request) -> HTMLResponse:
    """Return the page of groups."""
    context = context_of(request)
    return await context.page(
        "dead.html", active="dead", events="", said=None, **await _groups(context, request)
    )


async def groups(request: Request) -> HTMLResponse:
    """Return the groups alone."""
    context = context_of(request)
    return context.part("_dead.html", said=None, **await _groups(context, request))


async def change_group(request: Request) -> HTMLResponse:
    """Redrive or discard the letters whose numbers were shown."""
    context, form = context_of(request), await request.form()
    numbers = [number_of(each) for each in str(form.get("ids", "")).split(",")]
    ids = [each for each in numbers if each is not None]
    done = 0
    try:
        done = await _change(context, request.path_params["what"], ids)
        said = f"{done} {'delivered again' if request.path_params['what'] == 'redrive' else 'discarded'}."
    except RuntimeFault as error:
        said = str(error)
    return context.part("_dead.html", said=said, **await _groups(context, request))


async def letter_page(request: Request) -> HTMLResponse:
    """Return the page of one dead letter."""
    context, number = context_of(request), request.path_params["id"]
    return await _letter(context, number)


async def change_letter(request: Request) -> Response:
    """Redrive or discard one."""
    context, number = context_of(request), request.path_params["id"]
    letters = await context.stream.operations.dead_letters(DeadLetterFilter(ids=[number]))
    from_step = str((await request.form()).get("from_step", "")) or None
    await _change(context, request.path_params["what"], [number], from_step)
    is_redriven = request.path_params["what"] == "redrive" and letters
    return _go(f"/message/{letters[0]['message_id']}" if is_redriven else "/dead")


async def amend(request: Request) -> Response:
    """Deliver it with an edited value."""
    context, number = context_of(request), request.path_params["id"]
    text = str((await request.form()).get("value", ""))
    try:
        written = await context.stream.operations.amend(number, decode(text))
    except RuntimeFault as error:
        return context.part("_said.html", said=str(error), is_bad=True)
    context.live_state.changed()
    return _go(f"/message/{written}")


async def _change(context: DashboardContext, what: str, ids: list[int], from_step: str | None = None) -> int:
    if not ids:
        return 0
    operations, which = context.stream.operations, DeadLetterFilter(ids=ids)
    batches = (
        operations.redrive(which, from_step=from_step) if what == "redrive" else operations.discard(which)
    )
    done = sum([each async for each in batches])
    context.live_state.changed()
    return done


def _go(url: str) -> Response:
    """Have htmx load another page."""
    return Response(headers={"hx-redirect": url})


async def _groups(context: DashboardContext, request: Request) -> dict[str, Any]:
    """Return the groups that the filter means, what to mend first in front, each with its newest letters."""
    handler, minutes = request.query_params.get("handler", ""), request.query_params.get("minutes", "")
    minutes = minutes if minutes in SPANS else ""
    since = datetime.now(UTC) - timedelta(minutes=int(minutes)) if minutes else None
    found = await context.stream.views.dead_groups(subscription=handler or None, since=since)
    # A fault that goes on comes before one that is over, and of these the one that costs most.
    now = datetime.now(UTC)
    found.sort(key=lambda each: (now - moment(each["last_at"]) > _FRESH, -each["count"]))
    newest = [number for each in found for number in each["ids"][:_SHOWN]][:_LETTERS]
    letters = (
        {
            each["id"]: each
            for each in await context.stream.operations.dead_letters(
                DeadLetterFilter(ids=newest), limit=_LETTERS
            )
        }
        if newest
        else {}
    )
    for each in found:
        each["letters"] = [letters[number] for number in each["ids"][:_SHOWN] if number in letters]
        each["goes_on"] = now - moment(each["last_at"]) <= _FRESH
    stats = await context.live_state.stats.get()
    return {
        "groups": found,
        "total": sum(each["count"] for each in found),
        "handlers": sorted(
            {each["name"] for each in stats["subscriptions"]} | ({handler} if handler else set())
        ),
        "handler": handler,
        "minutes": minutes,
        "spans": SPANS,
        "query": urlencode(
            {name: text for name, text in (("handler", handler), ("minutes", minutes)) if text}
        ),
    }


async def _letter(context: DashboardContext, number: int) -> HTMLResponse:
    letters = await context.stream.operations.dead_letters(DeadLetterFilter(ids=[number]), details=True)
    if not letters:
        return await context.page(
            "missing.html", active="dead", status=404, events="",
            what=f"Dead letter {number}", why="It was delivered again or discarded.",
        )  # fmt: skip
    (letter,) = letters
    good = await context.stream.views.last_good(number)
    value = letter["message"]["value"]
    return await context.page(
        "letter.html", active="dead", events="", letter=letter, value=value, good=good, said=None,
        diff=[] if good is None else diff(good["value"], value), steps=await _steps(context, letter),
        complaints=_complaints(context, letter["subscription"], value),
    )  # fmt: skip


async def _steps(context: DashboardContext, letter: dict[str, Any]) -> list[str]:
    """Return the steps of a dead letter as `runtime trace` names them, in the order in which they finished."""
    story = await context.stream.views.trace(letter["message_id"], limit=1)
    return [
        label_of(step)
        for message in story["messages"]
        if message["id"] == letter["message_id"]
        for handled in message["handled"]
        if handled["subscription"] == letter["subscription"]
        for step in handled["steps"]
    ]


def _complaints(context: DashboardContext, subscription: str, value: object) -> list[str]:
    declared = context.schemas.declared.get(subscription)
    return [] if declared is None else declared.complaints(value)


def diff(good: object, bad: object) -> list[tuple[str, str]]:
    """Return the lines in which two values differ, each with its sign."""
    lines = unified_diff(pretty(good).splitlines(), pretty(bad).splitlines(), lineterm="", n=3)
    return [(line[:1], line[1:]) for line in lines if not line.startswith(("---", "+++"))]
