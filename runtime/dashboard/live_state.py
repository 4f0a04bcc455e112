"""The state of the whole stream, read once for all viewers, and not while there is none."""

from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

import anyio

from runtime.client.stream import Stream
from runtime.dashboard.activity import Activity
from runtime.dashboard.broadcasts import BroadcastFeed
from runtime.errors import StoreError

T = TypeVar("T")

_LATEST = 8
_HINT_SECONDS = 0.15
_TICK_SECONDS = 1.0
_RETRY_SECONDS = 2.0


class CachedAnswer(Generic[T]):
    """The cached result of a query, which is repeated when it is too old; a slow query is cached for longer.

    A failure is cached as well, for about as long as it took: else every page and viewer would wait for a failure of
    its own, one after the other, while the database is away.

    Args:
        ask: makes the query.
        seconds: the least age at which it is repeated.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._lock = anyio.Lock()
        self._answer: T | None = None
        self._fresh_until = 0.0
        self._is_forgotten = False
        self._fault: StoreError | None = None
        self._failed_until = 0.0
        self.took_seconds = 0.0

    async def get(self) -> T:
        """Return the result, from the cache if it is recent enough.

        Raises:
            StoreError: the query failed, now or a moment ago.
        """
        async with self._lock:
            if self._fault is not None and monotonic() < self._failed_until:
                raise self._fault.with_traceback(None)
            if self._answer is None or monotonic() >= self._fresh_until:
                began, self._is_forgotten = monotonic(), False
                try:
                    self._answer = await self._ask()
                except StoreError as error:
                    self._fault = error
                    self._failed_until = monotonic() + max(self._seconds, monotonic() - began)
                    raise
                self._fault = None
                self.took_seconds = monotonic() - began
                # At most a tenth of the time is spent on one query. A result from before a change is not cached.
                kept_seconds = 0.0 if self._is_forgotten else max(self._seconds, 10 * self.took_seconds)
                self._fresh_until = monotonic() + kept_seconds
            return self._answer

    def forget(self) -> None:
        """Repeat the query next time: the data has changed."""
        self._fresh_until = self._failed_until = 0.0
        self._is_forgotten = True


class LiveState:
    """The state of the stream, and a signal for the viewers when it changes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.stats: CachedAnswer[dict[str, Any]] = CachedAnswer(stream.stats, 0.8)
        self.flow: CachedAnswer[dict[str, Any]] = CachedAnswer(stream.views.flow, 3.0)
        self.latest: CachedAnswer[dict[str, Any]] = CachedAnswer(
            partial(stream.views.page, limit=_LATEST), 0.8
        )
        self.dead_groups: CachedAnswer[list[dict[str, Any]]] = CachedAnswer(stream.views.dead_groups, 3.0)
        self.schedules: CachedAnswer[list[dict[str, Any]]] = CachedAnswer(stream.operations.schedules, 0.8)
        self.webhooks: CachedAnswer[list[dict[str, Any]]] = CachedAnswer(stream.operations.webhooks, 0.8)
        self.activity = Activity(stream.views, self._tell)
        self.broadcasts = BroadcastFeed()
        self.is_live = False
        self.fault: str | None = None
        self._watchers = 0
        self._watched, self._unwatched = anyio.Event(), anyio.Event()
        self._hint = anyio.Event()
        self.is_closed = False

    async def run(self) -> None:
        """Signal changes until cancelled; listen to the stream's wake-ups while there are viewers."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.activity.run)
            tasks.start_soon(self.broadcasts.run)
            while True:
                await self._watched.wait()
                async with anyio.create_task_group() as watching:
                    watching.start_soon(self._listen)
                    watching.start_soon(self._tick)
                    await self._unwatched.wait()
                    watching.cancel_scope.cancel()

    async def _listen(self) -> None:
        while True:
            try:
                async for is_live in self._stream.hints():
                    self.is_live = is_live
                    self._tell()
                    await anyio.sleep(_HINT_SECONDS)
            except StoreError as error:
                self.is_live, self.fault = False, str(error)
            await anyio.sleep(_RETRY_SECONDS)

    async def _tick(self) -> None:
        """Signal at intervals too: attempts end without a wake-up."""
        while True:
            await anyio.sleep(_TICK_SECONDS)
            self._tell()

    def _tell(self) -> None:
        self._hint.set()
        self._hint = anyio.Event()

    def changed(self) -> None:
        """Signal a change by a person, to be shown at once."""
        self.stats.forget()
        self.flow.forget()
        self.latest.forget()
        self.dead_groups.forget()
        self.schedules.forget()
        self.webhooks.forget()
        self._tell()

    def close(self) -> None:
        """End the events of all viewers."""
        self.is_closed = True
        self._tell()

    async def wait(self) -> None:
        """Wait until the state may have changed."""
        await self._hint.wait()

    def __enter__(self) -> "LiveState":
        self._watchers += 1
        if self._watchers == 1:
            self._unwatched = anyio.Event()
            self._watched.set()
        return self

    def __exit__(self, *_: object) -> None:
        self._watchers -= 1
        if not self._watchers:
            self._watched = anyio.Event()
            self._unwatched.set()
