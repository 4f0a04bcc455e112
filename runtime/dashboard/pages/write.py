"""Writing a message by hand, checked against the schemas of the handlers that will get it."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Self

from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.dashboard.context import DashboardContext, context_of, number_of
from runtime.dashboard.filters import pretty
from runtime.dashboard.listeners import is_own, listeners
from runtime.dashboard.samples import sample_of
from runtime.encoding.json import decode
from runtime.errors import InvalidKey, InvalidPayload, RuntimeFault
from runtime.keys import check_key, is_exact
from runtime.message import Draft, Priority

_SUGGESTED = 8


@dataclass(frozen=True, slots=True)
class Form:
    """What was written into the form, as text."""

    key: str
    value: str
    agent: str
    delay: str
    priority: str
    dedup_key: str
    parent: str
    correlation: str

    @classmethod
    def of(cls, given: FormData | QueryParams) -> Self:
        """Return the form of a request."""
        told = {name: str(given.get(name, "")).strip() for name in cls.__slots__}
        return cls(**told)

    def draft(self, correlation_id: str | None) -> Draft:
        """Return the message.

        Raises:
            RuntimeFault: a field cannot be stored.
            ValueError: a field is no number.
        """
        return Draft(
            self.key,
            decode(self.value),
            agent=self.agent or None,
            delay=float(self.delay or 0) or None,
            priority=Priority(int(self.priority or 0)),
            dedup_key=self.dedup_key or None,
            parent_id=number_of(self.parent),
            correlation_id=correlation_id,
        )


async def write_page(request: Request) -> HTMLResponse:
    """Return the form, filled in from the parameters."""
    context, form = context_of(request), Form.of(request.query_params)
    listened, written = await _keys(context)
    found = await _check(context, form)
    if not form.value:
        form = replace(form, value=found["sample"] or "{}")
        found = await _check(context, form)
    return await context.page(
        "write.html", active="write", events="", keys=list(dict.fromkeys((*listened, *written))),
        suggested=listened[:_SUGGESTED], form=form, **found,
    )  # fmt: skip


async def check(request: Request) -> HTMLResponse:
    """Return who would get the message in the form, and what is wrong with it."""
    context = context_of(request)
    await context.schemas.read()
    return context.part("_check.html", **await _check(context, Form.of(await request.form())))


async def send(request: Request) -> HTMLResponse:
    """Send the message, unless it is wrong, or a handler's schema refuses it and the person did not insist."""
    context, given = context_of(request), await request.form()
    form = Form.of(given)
    found = await _check(context, form)
    fault = found["fault"]
    if any(each["complaints"] for each in found["readers"]) and given.get("anyway") != "yes":
        fault = fault or "A handler's schema refuses this value."
    sent = None
    if not fault:
        try:
            correlation_id = form.correlation or await _correlation_of(context, form.parent)
            (sent,) = await context.stream.send_all([form.draft(correlation_id)])
        except (RuntimeFault, ValueError) as error:
            fault = str(error)
    context.live_state.changed()
    return context.part("_sent.html", sent=sent, fault=fault, key=form.key)


async def _correlation_of(context: DashboardContext, parent: str) -> str | None:
    """Return what the effects of a message are correlated by, as for those that a handler emits.

    Raises:
        ValueError: there is no such message.
    """
    if not parent:
        return None
    number = number_of(parent)
    page = await context.stream.views.page(before=(number or 0) + 1, limit=1)
    cause = next((each for each in page["messages"] if each["id"] == number), None)
    if cause is None:
        raise ValueError(f"There is no message #{parent} to be the parent.")
    return str(cause["correlation_id"] or cause["id"])


async def _keys(context: DashboardContext) -> tuple[list[str], list[str]]:
    """Return the keys that handlers listen to, and those that were written of late."""
    stats, flow = await context.live_state.stats.get(), await context.live_state.flow.get()
    patterns = [pattern for each in stats["subscriptions"] for pattern in each["patterns"]]
    patterns += [pattern for each in context.schemas.declared.values() for pattern in each.patterns]
    listened = sorted({pattern for pattern in patterns if is_exact(pattern) and not is_own(pattern)})
    written = [each["key"] for each in flow["written"] if each["key"] and not is_own(each["key"])]
    return listened, written


async def _check(context: DashboardContext, form: Form) -> dict[str, Any]:
    """Return who listens to the key, what each has against the value, and a sample of what the first takes."""
    nothing: dict[str, Any] = {
        "fault": None, "readers": [], "key": "", "sample": None, "nearest": [], "schemas": context.schemas,
    }  # fmt: skip
    try:
        check_key(form.key)
    except InvalidKey as error:
        return {**nothing, "fault": str(error) if form.key else None}
    fault, value = None, None
    try:
        value = decode(form.value or "{}")
    except InvalidPayload as error:
        fault = str(error)
    readers, sample = [], None
    for each in listeners(form.key, (await context.live_state.stats.get())["subscriptions"]):
        declared = context.schemas.declared.get(each["name"])
        has_schema = declared is not None and declared.schema is not None
        if has_schema and sample is None:
            sample = pretty(sample_of(declared))
        readers.append({
            "name": each["name"],
            "paused": each["paused"],
            "workers": each["workers"],
            "has_schema": has_schema,
            "complaints": [] if declared is None or fault else declared.complaints(value),
        })  # fmt: skip
    nearest = [] if readers else get_close_matches(form.key, (await _keys(context))[0], 3, 0.7)
    return nothing | {
        "fault": fault, "readers": readers, "key": form.key, "sample": sample,
        "nearest": [each for each in nearest if each != form.key],
    }  # fmt: skip
