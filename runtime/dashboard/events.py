"""The stream of events that keeps an open page current: health, new rows, and hints to look."""

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from runtime.dashboard.context import DashboardContext, context_of, number_of
from runtime.dashboard.filters import is_open
from runtime.dashboard.pages.stream import Filter, told
from runtime.errors import StoreError

_WATCHED = 200
_NEW = 200
# Fields whose change alone is no news.
_VOLATILE = ("now", "seen_seconds", "lag_seconds", "details", "oldest_transaction_seconds")


async def events(request: Request) -> StreamingResponse:
    """Stream the events of one page until it is closed."""
    lines = Follower(context_of(request), request).lines()
    return StreamingResponse(lines, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


class Follower:
    """One open page, with the ids it has, so that only news is sent."""

    def __init__(self, context: DashboardContext, request: Request) -> None:
        self._context = context
        # A browser that was cut off says which event was its last; the address still says how the page began.
        after = number_of(request.headers.get("last-event-id")) or number_of(
            request.query_params.get("after")
        )
        # The page of the stream tells its last id; the others need only hints.
        self._after = after
        self._filter = Filter.of(request) if after is not None else None
        watching = (number_of(each) for each in request.query_params.get("watch", "").split(","))
        self._watched: dict[int, Any] = {each: None for each in watching if each is not None}
        self._health = ""
        self._state = ""

    async def lines(self) -> AsyncIterator[str]:
        """Yield the events in wire format."""
        live_state = self._context.live_state
        with live_state:
            yield "retry: 1000\n\n"
            while not live_state.is_closed:
                try:
                    async for event in self._news():
                        yield event
                except StoreError as error:
                    yield _event(
                        "health",
                        self._context.text("_health.html", health={"fault": str(error), "stats": None}),
                    )
                    self._health = ""
                await live_state.wait()

    async def _news(self) -> AsyncIterator[str]:
        if self._filter is not None:
            rows = await self._rows()
            if rows:
                yield _event("rows", rows, self._after)
        health = await self._context.health()
        text = self._context.text("_health.html", health=health)
        if text != self._health:
            self._health = text
            yield _event("health", text)
        state = json.dumps([_steady(health["stats"]), self._context.live_state.activity.version])
        if state != self._state:
            # At once, too: there may be news since the page was rendered.
            self._state = state
            yield _event("changed", "")

    async def _rows(self) -> str:
        """Return new rows, and unfinished rows with their new states, as one text."""
        assert self._filter is not None
        views = self._context.stream.views
        parts = []
        page = await told(self._context, await self._filter.page(views, after=self._after, limit=_NEW))
        if page["messages"]:
            parts.append(
                self._context.text(
                    "_rows.html", messages=page["messages"], next=None, query="", is_new=True, in_vain=0
                )
            )
        self._after = max(self._after or 0, page["newest"] or 0)
        if self._watched:
            for number, handled in (await views.handling(list(self._watched))).items():
                if handled != self._watched[number]:
                    self._watched[number] = handled
                    parts.append(
                        self._context.text(
                            "_handled.html", id=number, handled=handled, silence=None, is_late=True
                        )
                    )
                if not is_open(handled):
                    self._watched.pop(number, None)
        for message in page["messages"]:
            if is_open(message["handled"]):
                self._watched[message["id"]] = message["handled"]
        while len(self._watched) > _WATCHED:
            self._watched.pop(next(iter(self._watched)))
        return "".join(parts)


def _steady(told: Any) -> Any:
    """Return the state without the fields that change with time alone."""
    if isinstance(told, dict):
        return {name: _steady(each) for name, each in told.items() if name not in _VOLATILE}
    return [_steady(each) for each in told] if isinstance(told, list) else told


def _event(name: str, text: str, number: int | None = None) -> str:
    lines = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
    return f"event: {name}\n{lines}" + (f"id: {number}\n\n" if number is not None else "\n")
