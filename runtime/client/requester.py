"""How does whoever asked wait for the answers? One look at the table serves all that wait; wake-ups say when to look.

A request is stored at once and stands, whatever becomes of who asked. A lost wake-up costs latency only: the table is
looked at all the same, at a modest pace.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import anyio
from anyio.abc import TaskGroup

from runtime.agent.request_reply import RequestState, reply_key
from runtime.backoff import backoff_seconds
from runtime.errors import AskTimeout, InvalidValue, RuntimeFault, StoreError, StoreUnavailable
from runtime.message import Answer, Draft
from runtime.settings import Settings
from runtime.store import Sent, Store
from runtime.wakeups import Reachability
from runtime.wakeups.polling import Pace

_log = logging.getLogger("runtime.client.requester")
T = TypeVar("T")

_FIRST_LOOK_SECONDS = 0.02
_LAST_LOOK_SECONDS = 2.0
# Hints can be forged, and many come for others: some looks that found nothing are free, then they cost a pause.
_FREE_LOOKS = 3
_PAUSE_SECONDS = (0.005, 0.05)

Send = Callable[[list[Draft]], Awaitable[list[Sent]]]


@dataclass(eq=False)
class _PendingRequest:
    """One who waits for a request to be settled."""

    key: str
    judge: Callable[[RequestState], object | None]
    request: int | None = None
    found: RequestState | None = None
    settled: anyio.Event = field(default_factory=anyio.Event)
    outcome: object | None = None
    error: Exception | None = None

    def note(self, found: RequestState) -> bool:
        """Take note of what has come; returns whether it is settled by that."""
        self.found = found
        try:
            self.outcome = self.judge(found)
        except RuntimeFault as error:
            self.error = error
        if self.outcome is not None or self.error is not None:
            self.settled.set()
        return self.settled.is_set()

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        self.error = self.error or error
        self.settled.set()


class Requester:
    """Sends requests and waits for their answers, for one process. It lives on one loop.

    Args:
        store: where messages live.
        settings: the paces.
        asker: the topic and channel that hear of answers.
        reachable_by: how the database can tell: realtime, notify.
        reach: which push paths are live.
        send: what sends; by default the store.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        asker: UUID,
        reachable_by: Sequence[str],
        reach: Reachability,
        *,
        send: Send | None = None,
    ) -> None:
        self.id = asker
        self.reachable_by = tuple(reachable_by)
        self.reply_to = reply_key(asker)
        self._store = store
        self._send: Send = send or store.send
        self._reach = reach
        self._slow_seconds = settings.poll_slow_seconds
        self._pace = Pace(min(_FIRST_LOOK_SECONDS, settings.poll_fast_seconds), settings.poll_slow_seconds)
        self._waiting: list[_PendingRequest] = []
        self._woken = anyio.Event()
        self._idle_looks = 0
        self._failures = 0
        self._random = Random()
        self._loop = asyncio.get_running_loop()
        self._submitted: deque[tuple[Callable[[], Awaitable[Any]], Future[Any]]] = deque()
        self._called = anyio.Event()
        self._is_closed = False

    async def ask(self, draft: Draft, seconds: float | None) -> Answer:
        """Send a request and return its first good answer, or the first bad one when no better can come.

        Args:
            draft: the request, with the headers that make it one.
            seconds: how long to wait; for ever where None.

        Raises:
            AskTimeout: no answer came in time.
            NobodyAnswers: nobody can answer.
            StoreError: the request was not stored, or the answers cannot be read.
        """
        waiting = _PendingRequest(draft.key, RequestState.best)
        outcome = await self._settle(draft, waiting, seconds)
        if outcome is None:
            raise self._timeout(waiting, seconds)
        assert isinstance(outcome, Answer)
        return outcome

    async def ask_all(self, draft: Draft, count: int | None, seconds: float | None) -> list[Answer]:
        """Send a request and return its first answers; fewer at the deadline, or when no more can come.

        Args:
            draft: the request.
            count: how many to wait for; all that can come where None.
            seconds: how long to wait; for ever where None.

        Raises:
            AskTimeout: the request could not be sent in time.
            StoreError: the request was not stored, or the answers cannot be read.
        """
        waiting = _PendingRequest(draft.key, partial(RequestState.settled, count=count))
        await self._settle(draft, waiting, seconds)
        if waiting.request is None:
            raise self._timeout(waiting, seconds)
        return [] if waiting.found is None else list(waiting.found.answers[:count])

    def _timeout(self, waiting: _PendingRequest, seconds: float | None) -> AskTimeout:
        found = waiting.found
        reply_to, left = (self.reply_to, None) if found is None else (found.reply_to, found.waiting)
        return AskTimeout(waiting.key, waiting.request, reply_to, seconds or 0.0, left)

    async def _settle(self, draft: Draft, waiting: _PendingRequest, seconds: float | None) -> object | None:
        """Send, and wait until the request is settled; returns by what, or None at the deadline."""
        with anyio.move_on_after(seconds):
            waiting.request = (await self._send([draft]))[0].id
            self._waiting.append(waiting)
            self._idle_looks = 0
            self._pace.active()
            self._woken.set()
            try:
                await waiting.settled.wait()
            finally:
                self._waiting.remove(waiting)
        if waiting.request is not None and not waiting.settled.is_set():
            # The wake-up may have been lost.
            with anyio.move_on_after(_LAST_LOOK_SECONDS), suppress(StoreUnavailable):
                await self._look([waiting])
        if waiting.error is not None:
            raise waiting.error
        return waiting.outcome

    # What happens

    def wake(self) -> None:
        """There may be an answer. Returns at once."""
        if self._waiting:
            self._woken.set()

    def submit(self, work: Callable[[], Awaitable[T]]) -> "Future[T]":
        """Do some of the above on the asker's own loop. From any thread; cancelling the future ends the work."""
        future: Future[T] = Future()
        self._submitted.append((work, future))
        try:
            self._loop.call_soon_threadsafe(self._begin)
        except RuntimeError:
            self._refuse_submitted()
        return future

    def _begin(self) -> None:
        if self._is_closed:
            self._refuse_submitted()
        self._called.set()

    def _refuse_submitted(self) -> None:
        while self._submitted:
            _, future = self._submitted.popleft()
            with suppress(InvalidStateError):
                future.set_exception(_closed())

    async def _start_submitted(self, tasks: TaskGroup) -> None:
        while True:
            await self._called.wait()
            self._called = anyio.Event()
            while self._submitted:
                tasks.start_soon(self._carry_out, *self._submitted.popleft())

    async def _carry_out(self, work: Callable[[], Awaitable[T]], future: "Future[T]") -> None:
        # Whoever waits may give up at any moment, in another thread.
        with anyio.CancelScope() as scope, suppress(InvalidStateError):
            future.add_done_callback(lambda _: self._end(scope))
            try:
                future.set_result(await work())
            except Exception as error:  # noqa: BLE001 - it is raised where the work was asked for
                future.set_exception(error)
            finally:
                if not future.done():
                    future.set_exception(_closed())

    def _end(self, scope: anyio.CancelScope) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(scope.cancel)

    # The loop

    async def run(self) -> None:
        """Look for answers until cancelled; then nobody waits any longer."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._start_submitted, tasks)
                while True:
                    self._woken = anyio.Event()
                    if not self._waiting:
                        await self._woken.wait()
                        continue
                    await self._look_for_all()
                    await self._rest()
        finally:
            self._is_closed = True
            self._refuse_submitted()
            for waiting in self._waiting:
                waiting.fail(_closed())

    async def _look_for_all(self) -> None:
        waiting = list(self._waiting)
        try:
            await self._look(waiting)
        except StoreUnavailable as error:
            # The store is away: each waits on to its own deadline.
            _log.debug("answers cannot be looked for now: %s", error)
            self._failures += 1
            await anyio.sleep(
                backoff_seconds(min(self._failures, 8), first=0.1, cap=2.0, random=self._random)
            )
        except StoreError as error:
            for each in waiting:
                each.fail(error)
        else:
            self._failures = 0

    async def _look(self, waiting: Sequence[_PendingRequest]) -> None:
        """See what has come for these."""
        requests = sorted({each.request for each in waiting if each.request is not None})
        rows: list[Mapping[str, Any]] = await self._store.operate("stream_answers", requests=requests)
        found = {row["request"]: row for row in rows}
        settled = False
        for each in waiting:
            row = found.get(each.request or 0)
            if row is None:
                # Pruned, or the database was reset.
                row = {
                    "request": each.request, "reply_to": self.reply_to, "listeners": 1, "waiting": 0,
                    "handled": False, "answers": (),
                }  # fmt: skip
            settled = each.note(RequestState.from_row(row, each.key)) or settled
        self._idle_looks = 0 if settled else self._idle_looks + 1

    async def _rest(self) -> None:
        """Wait for a wake-up, no longer than a pace: a modest one where the database tells of answers."""
        if self._idle_looks > _FREE_LOOKS:
            first, cap = _PAUSE_SECONDS
            await anyio.sleep(min(cap, first * 2 ** min(self._idle_looks - _FREE_LOOKS, 8)))
        with anyio.move_on_after(self._slow_seconds if self._is_told() else self._pace.next_seconds()):
            await self._woken.wait()

    def _is_told(self) -> bool:
        """Whether wake-ups come for all that wait; those for the request of a worker that died go to that one."""
        return self._reach.is_live and all(
            each.found is None or each.found.reply_to == self.reply_to for each in self._waiting
        )


def _closed() -> StoreUnavailable:
    return StoreUnavailable(
        "The stream was closed while a request waited for its answer; the request stands."
    )


def check_wait(seconds: object, count: object = None) -> None:
    """Refuse to wait for a time or for a number of answers that makes no sense.

    Raises:
        InvalidValue: one of them is none.
    """
    is_time = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds < math.inf
    if seconds is not None and not is_time:
        raise InvalidValue(
            f"timeout=… must be more than 0 seconds, or None to wait for ever, not {seconds!r}."
        )
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise InvalidValue(f"first=… must be a whole number of 1 or more, or None for all, not {count!r}.")
