"""The stream of events that keeps an open page current: health, new rows, and hints to look."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import StreamingResponse

from runtime.broadcast import Broadcast
from runtime.dashboard.broadcasts import OpenConversation
from runtime.dashboard.context import DashboardContext, context_of, health_without, number_of
from runtime.dashboard.filters import is_open, preview
from runtime.dashboard.pages.stream import Filter, told
from runtime.errors import StoreError

_WATCHED = 200
_NEW = 200
_BUBBLES = 30
_BROADCAST_SECONDS = 0.1
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
        self._correlation = request.query_params.get("conversation")
        self._bubbles = Bubbles(context)

    async def lines(self) -> AsyncIterator[str]:
        """Yield the events in wire format."""
        live_state = self._context.live_state
        with live_state, ExitStack() as stack:
            talk = None
            if self._correlation:
                talk = stack.enter_context(live_state.broadcasts.following(self._correlation))
            yield "retry: 1000\n\n"
            while not live_state.is_closed:
                try:
                    async for event in self._news():
                        yield event
                except StoreError as error:
                    yield _event(
                        "health",
                        self._context.text("_health.html", health=health_without(error)),
                    )
                    self._health = ""
                if talk is None:
                    await live_state.wait()
                    continue
                await self._either(talk)
                if broadcasts := talk.take():
                    yield _event("broadcasts", self._bubbles.drawn(broadcasts))

    async def _either(self, talk: OpenConversation) -> None:
        """Wait for a broadcast, or until the state may have changed."""
        async with anyio.create_task_group() as tasks:

            async def first(wait: Callable[[], Awaitable[None]]) -> None:
                await wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(first, self._context.live_state.wait)
            tasks.start_soon(first, talk.wait)
        # Tokens gather for a moment: one event for each would be a swap of the page for each.
        await anyio.sleep(_BROADCAST_SECONDS)

    async def _news(self) -> AsyncIterator[str]:
        if self._filter is not None:
            rows = await self._rows()
            if rows:
                yield _event("rows", rows, self._after)
        health = await self._context.health()
        text = self._context.text("_health.html", health=health)
        text += self._context.text("_tally.html", health=health, is_late=True)
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


class Bubbles:
    """The broadcasts of a conversation as a page shows them: one bubble for each sender and key, which grows."""

    def __init__(self, context: DashboardContext) -> None:
        self._context = context
        self._shown: dict[tuple[str, str], tuple[int, int]] = {}
        self._count = 0

    def drawn(self, broadcasts: Iterable[Broadcast[Any]]) -> str:
        """Return new bubbles, what is added to old ones, and the removal of the oldest of too many."""
        parts: dict[tuple[str, str], dict[str, Any]] = {}
        for each in broadcasts:
            place = each.sender, each.key
            known = self._shown.get(place)
            if known is None:
                self._count += 1
            number, last = known or (self._count, 0)
            part = parts.setdefault(
                place, {"number": number, "first": each, "is_new": known is None, "text": ""}
            )
            lost = "" if each.number == last + 1 else "[…] "
            text = each.value if isinstance(each.value, str) else preview(each.value) + "\n"
            part["text"] += lost + text
            self._shown[place] = number, each.number
        gone = [self._shown.pop(place)[0] for place in list(self._shown)[:-_BUBBLES]]
        return self._context.text("_broadcasts.html", parts=list(parts.values()), gone=gone)


def _steady(told: Any) -> Any:
    """Return the state without the fields that change with time alone."""
    if isinstance(told, dict):
        return {name: _steady(each) for name, each in told.items() if name not in _VOLATILE}
    return [_steady(each) for each in told] if isinstance(told, list) else told


def _event(name: str, text: str, number: int | None = None) -> str:
    lines = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
    return f"event: {name}\n{lines}" + (f"id: {number}\n\n" if number is not None else "\n")
