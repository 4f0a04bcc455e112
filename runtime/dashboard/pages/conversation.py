"""One conversation: every message and attempt of a correlation id as a thread, its totals, and the file of it."""

from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from runtime.dashboard.charts import waterfall
from runtime.dashboard.context import DashboardContext, context_of, number_of
from runtime.dashboard.thread import as_markdown, entries_of, spent_text
from runtime.message import moment

_PAGE = 200
_EXPORTED = 5_000
# The chart stands beside the thread.
_CHART_WIDTH, _CHART_LABEL = 520, 170


async def conversation_page(request: Request) -> HTMLResponse:
    """Return the page."""
    context, correlation = context_of(request), request.path_params["id"]
    after = number_of(request.query_params.get("after")) or 0
    found = await _conversation(context, correlation, after)
    if found is None:
        return await context.page(
            "missing.html", active="stream", status=404, events="",
            what=f"Conversation {correlation}",
            why="No message bears this correlation id, or they were removed by retention.",
        )  # fmt: skip
    return await context.page(
        "conversation.html", active="stream", events="?" + urlencode({"conversation": correlation}), **found
    )


async def thread(request: Request) -> Response:
    """Return the part that changes while the conversation goes on; nothing if the page has it already."""
    context, correlation = context_of(request), request.query_params.get("id", "")
    found = await _conversation(context, correlation, number_of(request.query_params.get("after")) or 0)
    if found is None or found["seen"] == request.query_params.get("seen"):
        # Drawn anew, it would close what a reader has unfolded.
        return Response(status_code=204)
    return context.part("_thread.html", **found)


async def export(request: Request) -> Response:
    """Return the whole conversation as a file."""
    context, correlation = context_of(request), request.path_params["id"]
    messages: list[dict[str, Any]] = []
    after: int | None = 0
    page: dict[str, Any] = {}
    while after is not None and len(messages) < _EXPORTED:
        page = await context.stream.views.conversation(correlation, after=after, limit=1000)
        messages += page["messages"]
        after = page["next"]
    named = {
        "content-disposition": f"attachment; filename*=UTF-8''conversation-{quote(correlation, safe='')}"
    }
    if request.path_params["form"] == "json":
        named["content-disposition"] += ".json"
        told = {"correlation_id": correlation, "totals": page["totals"], "messages": messages}
        return JSONResponse(told, headers=named)
    named["content-disposition"] += ".md"
    return PlainTextResponse(
        as_markdown(correlation, messages, page["totals"]), media_type="text/markdown", headers=named
    )


async def _conversation(context: DashboardContext, correlation: str, after: int) -> dict[str, Any] | None:
    if len(correlation) > 255 or "\0" in correlation:
        return None
    found = await context.stream.views.conversation(correlation, after=after, limit=_PAGE)
    messages, totals = found["messages"], found["totals"]
    if not messages:
        return None
    began, ended = moment(totals["began_at"]), moment(totals["ended_at"])
    return {
        "correlation": correlation,
        "after": after,
        "next": found["next"],
        "first": messages[0],
        "totals": totals | {"seconds": (ended - began).total_seconds(), "told": spent_text(totals["spent"])},
        "entries": entries_of(messages, totals["began_at"]),
        "chart": waterfall(messages, _CHART_WIDTH, _CHART_LABEL),
        "seen": sha256(repr(_steady(found)).encode()).hexdigest()[:16],
    }


def _steady(found: Any) -> Any:
    """Return the conversation without the seconds until something is due, which change with time alone."""
    if isinstance(found, dict):
        return {name: _steady(each) for name, each in found.items() if name != "due_seconds"}
    return [_steady(each) for each in found] if isinstance(found, list) else found
