"""The approvals: what handlers ask people, and the forms to decide it."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.dashboard.context import DashboardContext, context_of
from runtime.dashboard.filters import age, pretty
from runtime.dashboard.samples import sample_of
from runtime.dashboard.schemas import Declared
from runtime.encoding.json import decode
from runtime.errors import InvalidPayload, InvalidValue, RuntimeFault

_SHOWN: Final = 50


async def approvals_page(request: Request) -> HTMLResponse:
    """Return the page of open requests."""
    context = context_of(request)
    return await context.page(
        "approvals.html", active="approvals", events="", said=None, **await _open(context)
    )


async def open_requests(request: Request) -> HTMLResponse:
    """Return the open requests alone."""
    context = context_of(request)
    return context.part("_approvals.html", said=None, **await _open(context))


async def decide(request: Request) -> HTMLResponse:
    """Decide a request; an answer that its schema refuses is not sent."""
    context, form, number = context_of(request), await request.form(), request.path_params["id"]
    given = {name: str(form.get(name, "")).strip() for name in ("approved", "answer", "why", "by")}
    is_approved = given["approved"] == "yes"
    operations = context.stream.operations
    try:
        # A request that is not among these is decided or over: the database says so, whatever the answer is.
        asked = next((each for each in await operations.approvals(_SHOWN) if each["request"] == number), None)
        wanted = None if asked is None else wanted_of(asked["schema"])
        answer = answer_of(given["answer"], wanted) if is_approved and wanted is not None else None
        told = await operations.decide(
            number, is_approved, answer=answer, by=given["by"] or None, why=given["why"] or None
        )
    except RuntimeFault as error:
        return context.part("_said.html", said=str(error), is_bad=True)
    context.live_state.changed()
    response = context.part(
        "_approvals.html", said=_outcome(number, is_approved, told), **await _open(context)
    )
    # The form's own place is for what is wrong with it.
    response.headers.update({"hx-retarget": "#requests", "hx-reswap": "innerHTML"})
    return response


def answer_of(text: str, wanted: Declared) -> Any:
    """Return the answer in a form's field: JSON, or a text without quotes where the schema takes that.

    Args:
        text: what the field contains.
        wanted: the schema of the answer.

    Raises:
        InvalidValue: the schema takes neither.
    """
    try:
        value = decode(text)
    except InvalidPayload as error:
        faults = [f"it is no JSON: {error}"]
    else:
        faults = wanted.complaints(value)
        if not faults:
            return value
    if text and text[0] not in '{["' and not wanted.complaints(text):
        return text
    raise InvalidValue(f"The answer does not fit, so nothing was sent: {'; '.join(faults)}")


def _outcome(number: int, is_approved: bool, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what became of a decision, in words."""
    if told["decided"]:
        return {"kind": "good", "request": number, "text": "approved." if is_approved else "rejected."}
    if told["expired"]:
        return {
            "kind": "busy", "request": number,
            "text": "was open until a moment ago: its time is over, and nothing was decided.",
        }  # fmt: skip
    earlier = told["decision"]
    word = "approved" if earlier["approved"] else "rejected"
    why = f": {earlier['why'].rstrip('.')}" if earlier["why"] else ""
    text = f"was {word} by {earlier['by'] or 'somebody'} {age(earlier['at'])} ago{why}. The first decision counts."
    return {"kind": "busy", "request": number, "text": text}


def wanted_of(schema: Any) -> Declared | None:
    """Return the schema of an answer as a declaration; None where a plain yes or no is asked for."""
    return Declared((), schema=schema) if isinstance(schema, dict) and schema else None


async def _open(context: DashboardContext) -> dict[str, Any]:
    requests = await context.stream.operations.approvals(_SHOWN)
    for each in requests:
        wanted = wanted_of(each["schema"])
        each["sample"] = None if wanted is None else pretty(sample_of(wanted))
    total = (await context.live_state.stats.get())["approvals"]
    return {"requests": requests, "total": max(total, len(requests))}
