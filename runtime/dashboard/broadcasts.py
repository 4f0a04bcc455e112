"""The broadcasts of the stream, received once for all open conversations, and not while there is none."""

from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from runtime.broadcast import Broadcast

_KEPT = 2_000


class OpenConversation:
    """The broadcasts that an open page has not shown yet; of a page that is slow the oldest are dropped."""

    def __init__(self, correlation: str) -> None:
        self.correlation = correlation
        self._waiting: deque[Broadcast[Any]] = deque(maxlen=_KEPT)
        self._arrived = anyio.Event()

    def add(self, broadcast: Broadcast[Any]) -> None:
        """Keep a broadcast for the page."""
        self._waiting.append(broadcast)
        self._arrived.set()

    def take(self) -> list[Broadcast[Any]]:
        """Return what has arrived since the last call."""
        found = list(self._waiting)
        self._waiting.clear()
        self._arrived = anyio.Event()
        return found

    async def wait(self) -> None:
        """Wait until there is a broadcast to take."""
        await self._arrived.wait()


class BroadcastFeed:
    """Hands broadcasts to the open pages of their conversations.

    Attributes:
        receive: receives broadcasts and passes them to `take`, until it is cancelled; None where nothing carries them.
    """

    def __init__(self) -> None:
        self.receive: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._pages: list[OpenConversation] = []
        self._opened, self._closed = anyio.Event(), anyio.Event()

    def take(self, broadcast: Broadcast[Any]) -> None:
        """Keep a broadcast for the pages of its conversation."""
        for page in self._pages:
            if broadcast.correlation_id == page.correlation:
                page.add(broadcast)

    @contextmanager
    def following(self, correlation: str) -> Iterator[OpenConversation]:
        """Collect the broadcasts of a conversation for a page, while it is open."""
        page = OpenConversation(correlation)
        self._pages.append(page)
        self._closed = anyio.Event()
        self._opened.set()
        try:
            yield page
        finally:
            self._pages.remove(page)
            if not self._pages:
                self._opened = anyio.Event()
                self._closed.set()

    async def run(self) -> None:
        """Receive broadcasts while a conversation is open, until cancelled."""
        if self.receive is None:
            return
        while True:
            await self._opened.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.receive)
                await self._closed.wait()
                tasks.cancel_scope.cancel()
