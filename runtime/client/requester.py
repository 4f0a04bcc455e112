"""Requests and the wait for their answers: one query serves all requests that wait; wake-ups say when to run it.

A request is stored at once and stays, even if the process that asked ends. A lost wake-up costs latency only: the table
is queried anyway, at a modest pace.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID, uuid4

import anyio
from anyio.abc import TaskGroup

from runtime.agent.request_reply import RequestState, asking_headers, reply_key
from runtime.agent.services import AskOptions
from runtime.backoff import Outage
from runtime.client.factories import open_wakeups, reachable_by
from runtime.client.pending_request import PendingRequest
from runtime.client.wakeup_inbox import WakeupInbox
from runtime.errors import InvalidValue, StoreError, StoreUnavailable
from runtime.message import Answer, Draft, Priority, check_dedup_key
from runtime.settings import Settings
from runtime.store import Sent, Store
from runtime.wakeups import Reachability
from runtime.wakeups.polling import Pace

if TYPE_CHECKING:
    from runtime.wakeups.client_channel import OwnClient

_log = logging.getLogger("runtime.client.requester")
T = TypeVar("T")

_FIRST_LOOK_SECONDS = 0.02
_LAST_LOOK_SECONDS = 2.0
# Hints can be forged, and many are for other requests: after some looks that found nothing, each costs a pause.
_FREE_LOOKS = 3
_PAUSE_SECONDS = (0.005, 0.05)

Send = Callable[[list[Draft]], Awaitable[list[Sent]]]


class Requester:
    """Sends requests and waits for their answers, for one process. It lives on one loop.

    Args:
        store: where messages live.
        settings: the polling intervals.
        identity: the topic and channel on which answers are announced.
        reachable_by: how the database can announce them: realtime, notify.
        reach: which push paths are live.
        send: sends the messages; by default the store.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        identity: UUID,
        reachable_by: Sequence[str],
        reach: Reachability,
        *,
        send: Send | None = None,
    ) -> None:
        self.reply_to = reply_key(identity)
        self.id = identity
        self.reachable_by = tuple(reachable_by)
        self._store = store
        self._send: Send = send or store.send
        self._reach = reach
        self._slow_seconds = settings.poll_slow_seconds
        self._pace = Pace(min(_FIRST_LOOK_SECONDS, settings.poll_fast_seconds), settings.poll_slow_seconds)
        self._waiting: list[PendingRequest] = []
        self._woken = anyio.Event()
        self._idle_looks = 0
        self._outage = Outage(first=0.1, cap=2.0)
        self._loop = asyncio.get_running_loop()
        self._submitted: deque[tuple[Callable[[], Awaitable[Any]], Future[Any]]] = deque()
        self._called = anyio.Event()
        self._is_closed = False

    @classmethod
    def start(
        cls, store: Store, settings: Settings, tasks: TaskGroup, send: Send, client: "OwnClient | None" = None
    ) -> Self:
        """Return a requester that runs in these tasks, with wake-ups of its own."""
        identity = uuid4()
        # A script has no address that a database webhook could post to.
        without = settings.model_copy(update={"webhook": None})
        sources = open_wakeups(without, identity, [reply_key(identity)], client)
        inbox = WakeupInbox(store, identity, sources, lambda: requester.wake())
        requester = cls(store, settings, identity, reachable_by(sources), inbox.reach, send=send)
        tasks.start_soon(requester.run)
        tasks.start_soon(inbox.run)
        return requester

    def draft(
        self,
        key: str,
        value: object,
        options: AskOptions,
        *,
        dedup_key: str,
        agent: str | None = None,
        correlation_id: str | None = None,
        parent_id: int | None = None,
    ) -> Draft:
        """Return the message of a request.

        Args:
            key: the key to ask under.
            value: the question.
            options: as the user gave them.
            dedup_key: unless the options have one; with it a request can be sent again when the store's reply is lost.
            agent: the writer's name.
            correlation_id: unless the options have one.
            parent_id: the message whose handler asks.
        """
        return Draft(
            key,
            value,
            agent=agent,
            expires_in=options.get("expires_in"),
            priority=options.get("priority", Priority.NORMAL),
            dedup_key=check_dedup_key(options.get("dedup_key")) or dedup_key,
            correlation_id=options.get("correlation_id") or correlation_id,
            parent_id=parent_id,
            headers=asking_headers(self.id, self.reachable_by, options.get("headers")),
        )

    async def send(self, draft: Draft) -> int:
        """Send one message; returns its id, or that of the earlier one with its dedup_key.

        Raises:
            StoreError: it was not stored.
        """
        return (await self._send([draft]))[0].id

    async def ask(self, draft: Draft, seconds: float | None) -> Answer:
        """Send a request and return its first good answer, or the first bad one when no better can come.

        Args:
            draft: the request, as `draft` returned it.
            seconds: how long to wait; for ever where None.

        Raises:
            AskTimeout: no answer came in time.
            NobodyAnswers: no handler can answer.
            InvalidValue: `seconds` is no time.
            StoreError: the request was not stored, or the answers cannot be read.
        """
        check_wait(seconds)
        pending = PendingRequest(draft, seconds, is_for_one=True)
        await self.settle(pending, seconds)
        return pending.answers()[0]

    async def ask_all(self, draft: Draft, count: int | None, seconds: float | None) -> list[Answer]:
        """Send a request and return its first answers; fewer at the deadline, or when no more can come.

        Args:
            draft: the request.
            count: how many to wait for; all that can come where None.
            seconds: how long to wait; for ever where None.

        Raises:
            AskTimeout: the request could not be sent in time.
            InvalidValue: `seconds` is no time, or `count` is no number of answers.
            StoreError: the request was not stored, or the answers cannot be read.
        """
        check_wait(seconds, count)
        pending = PendingRequest(draft, seconds, count)
        await self.settle(pending, seconds)
        return pending.answers()

    async def settle(
        self, pending: PendingRequest, seconds: float | None, patience: float | None = None
    ) -> None:
        """Send a request that is not known to be stored, and wait until it is settled.

        Args:
            pending: the request; it takes note of what is found.
            seconds: how long to send and to wait; for ever where None.
            patience: how long to wait for answers once it is sent, where that is shorter; 0 looks once.

        Raises:
            StoreError: the request was not stored, or the answers cannot be read.
        """
        with anyio.move_on_after(seconds):
            if pending.request is None:
                pending.request = (await self._send([pending.draft]))[0].id
            if patience != 0:
                await self._wait(pending, patience)
        if pending.request is not None and not pending.settled.is_set():
            # The wake-up may have been lost.
            with anyio.move_on_after(_LAST_LOOK_SECONDS), suppress(StoreUnavailable):
                await self._look([pending])

    async def _wait(self, pending: PendingRequest, seconds: float | None) -> None:
        self._waiting.append(pending)
        self._idle_looks = 0
        self._pace.active()
        self._woken.set()
        try:
            with anyio.move_on_after(seconds):
                await pending.settled.wait()
        finally:
            self._waiting.remove(pending)

    # Called from outside

    def wake(self) -> None:
        """There may be an answer. Returns at once."""
        if self._waiting:
            self._woken.set()

    def submit(self, work: Callable[[], Awaitable[T]]) -> "Future[T]":
        """Run work on this requester's loop. From any thread; cancelling the future ends the work."""
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
        # The caller may cancel the future at any moment, from another thread.
        with anyio.CancelScope() as scope, suppress(InvalidStateError):
            future.add_done_callback(lambda _: self._end(scope))
            try:
                future.set_result(await work())
            except Exception as error:  # noqa: BLE001 - it is raised where the future is awaited
                future.set_exception(error)
            finally:
                if not future.done():
                    future.set_exception(_closed())

    def _end(self, scope: anyio.CancelScope) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(scope.cancel)

    # The loop

    async def run(self) -> None:
        """Look for answers until cancelled; then every waiting request fails."""
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
            # Each request waits on to its own deadline.
            _log.debug("answers cannot be read now: %s", error)
            await anyio.sleep(self._outage.pause_seconds())
        except StoreError as error:
            for each in waiting:
                each.fail(error)
        else:
            self._outage.over()

    async def _look(self, waiting: Sequence[PendingRequest]) -> None:
        """Read the answers to these requests."""
        requests = sorted({each.request for each in waiting if each.request is not None})
        rows: list[Mapping[str, Any]] = await self._store.operate("stream_answers", requests=requests)
        found = {row["request"]: row for row in rows}
        settled = False
        for each in waiting:
            row = found.get(each.request or 0)
            if row is None:
                # The request was pruned, or the database was reset.
                row = {
                    "request": each.request, "reply_to": self.reply_to, "listeners": 1, "waiting": 0,
                    "handled": False, "answers": (), "seen": (),
                }  # fmt: skip
            settled = each.note(RequestState.from_row(row, each.key)) or settled
        self._idle_looks = 0 if settled else self._idle_looks + 1

    async def _rest(self) -> None:
        """Wait for a wake-up, no longer than the polling interval: a long one if the database announces answers."""
        if self._idle_looks > _FREE_LOOKS:
            first, cap = _PAUSE_SECONDS
            await anyio.sleep(min(cap, first * 2 ** min(self._idle_looks - _FREE_LOOKS, 8)))
        with anyio.move_on_after(self._slow_seconds if self._is_announced() else self._pace.next_seconds()):
            await self._woken.wait()

    def _is_announced(self) -> bool:
        """Whether every answer is announced here; those to a request of a worker that died are announced to it."""
        return self._reach.is_live and all(
            each.found is None or each.found.reply_to == self.reply_to for each in self._waiting
        )


def _closed() -> StoreUnavailable:
    return StoreUnavailable(
        "The stream was closed while a request waited for its answer; the request stands."
    )


def check_wait(seconds: object, count: object = None) -> None:
    """Check how long to wait, and for how many answers.

    Raises:
        InvalidValue: one of them is no such number.
    """
    is_time = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds < math.inf
    if seconds is not None and not is_time:
        raise InvalidValue(
            f"timeout=… must be more than 0 seconds, or None to wait for ever, not {seconds!r}."
        )
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise InvalidValue(f"first=… must be a whole number of 1 or more, or None for all, not {count!r}.")
