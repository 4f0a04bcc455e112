"""The dead letters by error; redrive one, a group, or an edited value, or discard them."""

from difflib import unified_diff
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from runtime.client.admin import DeadLetterFilter
from runtime.dashboard.context import DashboardContext, desk_of, number_of
from runtime.dashboard.filters import pretty
from runtime.encoding.json import decode
from runtime.errors import RuntimeFault


async def dead_page(request: Request) -> HTMLResponse:
    """The groups."""
    desk = desk_of(request)
    return await desk.page("dead.html", active="dead", events="", said=None, **await _groups(desk))


async def groups(request: Request) -> HTMLResponse:
    """The groups alone, anew."""
    desk = desk_of(request)
    return desk.part("_dead.html", said=None, **await _groups(desk))


async def change_group(request: Request) -> HTMLResponse:
    """Redrive or discard the letters whose numbers were shown."""
    desk, form = desk_of(request), await request.form()
    numbers = [number_of(each) for each in str(form.get("ids", "")).split(",")]
    ids = [each for each in numbers if each is not None]
    done = 0
    try:
        done = await _change(desk, request.path_params["what"], ids)
        said = f"{done} {'delivered again' if request.path_params['what'] == 'redrive' else 'discarded'}."
    except RuntimeFault as error:
        said = str(error)
    return desk.part("_dead.html", said=said, **await _groups(desk))


async def letter_page(request: Request) -> HTMLResponse:
    """One dead letter."""
    desk, number = desk_of(request), request.path_params["id"]
    return await _letter(desk, number)


async def change_letter(request: Request) -> Response:
    """Redrive or discard one."""
    desk, number = desk_of(request), request.path_params["id"]
    letters = await desk.stream.operations.dead_letters(DeadLetterFilter(ids=[number]))
    await _change(desk, request.path_params["what"], [number])
    is_redriven = request.path_params["what"] == "redrive" and letters
    return _go(f"/message/{letters[0]['message_id']}" if is_redriven else "/dead")


async def amend(request: Request) -> Response:
    """Deliver it with an edited value."""
    desk, number = desk_of(request), request.path_params["id"]
    text = str((await request.form()).get("value", ""))
    try:
        written = await desk.stream.operations.amend(number, decode(text))
    except RuntimeFault as error:
        return desk.part("_said.html", said=str(error), is_bad=True)
    desk.pulse.changed()
    return _go(f"/message/{written}")


async def _change(desk: DashboardContext, what: str, ids: list[int]) -> int:
    if not ids:
        return 0
    operations, which = desk.stream.operations, DeadLetterFilter(ids=ids)
    batches = operations.redrive(which) if what == "redrive" else operations.discard(which)
    done = sum([each async for each in batches])
    desk.pulse.changed()
    return done


def _go(url: str) -> Response:
    """Have htmx load another page."""
    return Response(headers={"hx-redirect": url})


async def _groups(desk: DashboardContext) -> dict[str, Any]:
    found = await desk.stream.views.dead_groups()
    return {"groups": found, "total": sum(each["count"] for each in found)}


async def _letter(desk: DashboardContext, number: int) -> HTMLResponse:
    letters = await desk.stream.operations.dead_letters(DeadLetterFilter(ids=[number]), details=True)
    if not letters:
        return await desk.page(
            "missing.html", active="dead", status=404, events="",
            what=f"Dead letter {number}", why="It was delivered again or discarded.",
        )  # fmt: skip
    (letter,) = letters
    good = await desk.stream.views.last_good(number)
    value = letter["message"]["value"]
    return await desk.page(
        "letter.html", active="dead", events="", letter=letter, value=value, good=good, said=None,
        diff=[] if good is None else diff(good["value"], value),
        complaints=_complaints(desk, letter["subscription"], value),
    )  # fmt: skip


def _complaints(desk: DashboardContext, subscription: str, value: object) -> list[str]:
    declared = desk.schemas.declared.get(subscription)
    return [] if declared is None else declared.complaints(value)


def diff(good: object, bad: object) -> list[tuple[str, str]]:
    """The lines in which two values differ, each with its sign."""
    lines = unified_diff(pretty(good).splitlines(), pretty(bad).splitlines(), lineterm="", n=3)
    return [(line[:1], line[1:]) for line in lines if not line.startswith(("---", "+++"))]
