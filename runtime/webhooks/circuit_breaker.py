"""Circuit breakers: a target rests after too many failures in a row, or when it asks for that.

The database decides, so that all workers agree: it pauses the subscription, and messages wait without spending an
attempt. A worker reports how its requests went, and learns the state of its targets.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from runtime.agent.retry import RetryLater
from runtime.backoff import Outage
from runtime.encoding.json import encode
from runtime.errors import PostFailed, StoreError
from runtime.store import Store

_log = logging.getLogger("runtime.webhooks")
_SUCCESS_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 10.0


@dataclass
class _CircuitBreaker:
    """The state of a target, as far as this worker knows."""

    rests_until: float = 0.0
    is_probing: bool = False
    is_failing: bool = False
    succeeded_at: float = 0.0
    # Held by the one request that tries a target after its rest; the others wait for the result.
    turn: anyio.Lock = field(default_factory=anyio.Lock)

    @property
    def rests(self) -> bool:
        return self.rests_until > time.monotonic()


class CircuitBreakers:
    """The states of a worker's targets.

    Args:
        targets: their names, URLs for people, and what else a list of them shows.
        look_seconds: how often to ask the database though there is nothing to report.
    """

    def __init__(self, targets: Sequence[Mapping[str, Any]], look_seconds: float) -> None:
        self._targets = targets
        self._look_seconds = look_seconds
        self._standings = {str(target["name"]): _CircuitBreaker() for target in targets}
        self._inbox: deque[tuple[dict[str, Any] | None, Future[None] | None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._called = anyio.Event()
        self._outage = Outage()

    # Called from the loop of user code

    @asynccontextmanager
    async def admitted(self, name: str) -> AsyncIterator[None]:
        """Enter when a request may be made; only one at a time to a target that has just rested.

        Raises:
            RetryLater: the target rests.
        """
        standing = self._standings[name]
        if standing.rests:
            # An operator may have resumed it.
            await self._told(None)
        async with AsyncExitStack() as stack:
            if standing.is_probing and not standing.rests:
                await stack.enter_async_context(standing.turn)
            if standing.rests:
                raise RetryLater(1, "the target rests")
            if not standing.is_probing:
                await stack.aclose()
            yield

    async def failed(self, name: str, message: int, error: PostFailed) -> bool:
        """Report a failure, and return whether the target rests now."""
        await self._told(
            {
                "name": name, "kind": error.kind, "message": message, "status": error.status,
                "seconds": error.seconds, "error": str(error),
            }
        )  # fmt: skip
        return self._standings[name].rests

    def succeeded(self, name: str) -> None:
        """Report a success: at once where it ends a row of failures, else now and then."""
        standing, now = self._standings[name], time.monotonic()
        if standing.is_probing or standing.is_failing or now - standing.succeeded_at > _SUCCESS_SECONDS:
            if not standing.rests:
                standing.is_probing = standing.is_failing = False
            standing.succeeded_at = now
            self._tell({"name": name, "kind": "done"}, None)

    async def _told(self, note: dict[str, Any] | None) -> None:
        """Report, and wait until the database has answered, but not long: the store may be away."""
        answered: Future[None] = Future()
        self._tell(note, answered)
        with anyio.move_on_after(_ANSWER_SECONDS):
            await asyncio.wrap_future(answered)

    def _tell(self, note: dict[str, Any] | None, answered: Future[None] | None) -> None:
        if self._loop is None:
            if answered is not None:
                answered.set_result(None)
            return
        self._inbox.append((note, answered))
        # The loop may have ended.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._called.set())

    # On the runtime's own loop

    async def keep(self, store: Store) -> None:
        """Report to the database, end rests whose time is over, and learn the states of the targets, for ever."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._called = anyio.Event()
            waiting = [self._inbox.popleft() for _ in range(len(self._inbox))]
            notes = [note for note, _ in waiting if note is not None]
            try:
                answer = await store.operate(
                    "stream_note_webhooks", targets=encode(self._targets), notes=encode(notes)
                )
                pause = self._look_seconds
                self._outage.over()
                self._absorb(answer)
            except StoreError as error:
                pause = self._outage.pause_seconds()
                if self._outage.is_news(str(error)):
                    _log.warning(
                        "the states of the webhooks' targets cannot be stored: %s Trying again.", error
                    )
            finally:
                for _, answered in waiting:
                    # The request that waited may have been cancelled meanwhile.
                    if answered is not None and answered.set_running_or_notify_cancel():
                        answered.set_result(None)
            with anyio.move_on_after(min(pause, self._seconds_to_next_end())):
                await self._called.wait()

    def _absorb(self, answer: Mapping[str, Mapping[str, Any]]) -> None:
        now = time.monotonic()
        for name, told in answer.items():
            standing = self._standings[name]
            rested = standing.rests
            standing.rests_until = now + (told["rests_seconds"] or 0.0)
            # A rest that is over here is not over yet in the database: what comes in between goes one by one, too.
            standing.is_probing = told["probing"] or told["rests_seconds"] is not None
            standing.is_failing = told["failing"]
            if standing.rests and not rested:
                _log.warning(
                    "the target of %s rests for %.0f s; messages wait, and spend no attempt",
                    name,
                    told["rests_seconds"],
                )
            elif rested and not standing.rests:
                _log.info("the target of %s has rested; it is tried again", name)

    def _seconds_to_next_end(self) -> float:
        now = time.monotonic()
        ends = [
            standing.rests_until - now for standing in self._standings.values() if standing.rests_until > now
        ]
        # A moment later, so that the database agrees that it is over.
        return max(0.0, min(ends, default=self._look_seconds)) + 0.01
