"""Writing a message by hand, checked against the schemas of the handlers that will get it."""

from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from runtime.dashboard.context import DashboardContext, context_of
from runtime.encoding.json import decode
from runtime.errors import InvalidKey, InvalidPayload, RuntimeFault
from runtime.keys import check_key, matches
from runtime.message import Priority


async def write_page(request: Request) -> HTMLResponse:
    """Return the form, filled in from the parameters."""
    context = context_of(request)
    stats = await context.live_state.stats.get()
    patterns = {pattern for each in stats["subscriptions"] for pattern in each["patterns"]}
    keys = sorted(pattern for pattern in patterns if "*" not in pattern and ">" not in pattern)
    form = {"key": request.query_params.get("key", ""), "value": request.query_params.get("value", "{}")}
    return await context.page(
        "write.html", active="write", events="", keys=keys, form=form, has_schemas=bool(context.schemas.declared),
        **await _check(context, form["key"], form["value"]),
    )  # fmt: skip


async def check(request: Request) -> HTMLResponse:
    """Return who would get the message in the form, and what is wrong with it."""
    context, form = context_of(request), await request.form()
    await context.schemas.read()
    return context.part(
        "_check.html", **await _check(context, str(form.get("key", "")), str(form.get("value", "")))
    )


async def send(request: Request) -> HTMLResponse:
    """Send the message, unless it is wrong, or a handler's schema refuses it and the person did not insist."""
    context, form = context_of(request), await request.form()
    key, text = str(form.get("key", "")).strip(), str(form.get("value", ""))
    found = await _check(context, key, text)
    if found["fault"] or (
        any(each["complaints"] for each in found["readers"]) and form.get("anyway") != "yes"
    ):
        return context.part(
            "_sent.html", sent=None, fault=found["fault"] or "A handler's schema refuses this value."
        )
    try:
        sent = await context.stream.send(
            key,
            decode(text),
            agent=str(form.get("agent") or "") or None,
            delay=float(str(form.get("delay") or 0)) or None,
            priority=Priority(int(str(form.get("priority") or 0))),
            dedup_key=str(form.get("dedup_key") or "") or None,
        )
    except (RuntimeFault, ValueError) as error:
        return context.part("_sent.html", sent=None, fault=str(error))
    context.live_state.changed()
    return context.part("_sent.html", sent=sent, fault=None, key=key)


async def _check(context: DashboardContext, key: str, text: str) -> dict[str, Any]:
    key = key.strip()
    fault, value = None, None
    try:
        check_key(key)
    except InvalidKey as error:
        return {"fault": str(error) if key else None, "readers": [], "key": ""}
    try:
        value = decode(text)
    except InvalidPayload as error:
        fault = str(error)
    readers = []
    for each in (await context.live_state.stats.get())["subscriptions"]:
        if any(matches(pattern, key) for pattern in each["patterns"]):
            declared = context.schemas.declared.get(each["name"])
            readers.append({
                "name": each["name"],
                "paused": each["paused"],
                "workers": each["workers"],
                "has_schema": declared is not None and declared.schema is not None,
                "complaints": [] if declared is None or fault else declared.complaints(value),
            })  # fmt: skip
    return {"fault": fault, "readers": readers, "key": key}
