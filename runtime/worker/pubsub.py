"""Publish and subscribe: each live process gets each message, by reading the stream itself.

A handler declared with `deliver="each"` has no subscription and no deliveries. Every process reads what is new under
its patterns, as a listener does, hands it to the handler, and forgets it. Wake-ups come over the worker's own socket;
only rows tell of what every process wants, so announcements to the worker do not count.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from runtime.agent.handler import Handler
from runtime.backoff import Outage, retrying
from runtime.client.listener import Reader
from runtime.client.unheard import UnheardKeys
from runtime.errors import StoreError
from runtime.keys import matches
from runtime.message import Message
from runtime.settings import Settings
from runtime.store import Delivery, Report, Store
from runtime.wakeups import Path, Reachability
from runtime.wakeups.polling import Pace
from runtime.worker.event_loop import call_soon
from runtime.worker.execution.executor import Executor

_log = logging.getLogger("runtime.worker.pubsub")
# Messages that are written within this time are read together.
_GATHER_SECONDS = 0.05
# How many messages may wait for a handler, and how long a page that it has no room for is kept.
_WAITING = 1_000
_PATIENCE_SECONDS = 5.0
_WARN_SECONDS = 10.0
# Announcements on these paths go to the workers whose handlers have work, not to every process.
_ADDRESSED = ("broadcast", "notify")


class PubSub:
    """The handlers of one process that get each message.

    It lives on the runtime's own loop; methods for other threads say so.

    Args:
        handlers: those declared with `deliver="each"`.
        limits: how many of each may run at once, by the handler's name.
        store: where messages live.
        runner: where handlers run.
        settings: the paces.

    Attributes:
        counts: what happened so far: heard, dropped, and emits that were lost.
    """

    def __init__(
        self,
        handlers: Sequence[Handler],
        limits: Mapping[str, int],
        store: Store,
        runner: Executor,
        settings: Settings,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.unheard = UnheardKeys(_log)
        self._reach = Reachability(frozenset({"postgres_changes"}))
        self._loop = asyncio.get_running_loop()
        self._reports: deque[Report] = deque()
        self._is_told = False
        # The executor knows them by numbers below zero, which no subscription has.
        self._subscribers = {
            -place: _Subscriber(self, handler, -place, limits[handler.name], store, runner, settings)
            for place, handler in enumerate(handlers, start=1)
        }
        runner.know({each.handler.name: number for number, each in self._subscribers.items()}, self.report)
        self._reading = anyio.CancelScope()

    @property
    def has_begun(self) -> bool:
        """Whether every handler gets the messages that are written now. From any thread."""
        return all(each.has_begun for each in self._subscribers.values())

    @property
    def is_live(self) -> bool:
        """Whether rows are pushed, so that there is no need to poll."""
        return self._reach.is_live

    async def run(self, ready: anyio.Event) -> None:
        """Read and hand over until cancelled, once the worker is ready."""
        await ready.wait()
        async with anyio.create_task_group() as tasks:
            for each in self._subscribers.values():
                tasks.start_soon(each.send_emits)
            with self._reading:
                async with anyio.create_task_group() as readers:
                    for each in self._subscribers.values():
                        readers.start_soon(each.read)

    def stop(self) -> None:
        """Read nothing more; what runs goes on. From any thread."""
        call_soon(self._loop, self._stop)

    def _stop(self) -> None:
        self._reading.cancel()
        for each in self._subscribers.values():
            each.drop_waiting()

    def open_and_close(self) -> None:
        """Look which handlers are open now: the others get nothing. From any thread."""
        call_soon(self._loop, self._look)

    async def drained(self) -> None:
        """Return when nothing runs any more and every emit is sent."""
        for each in self._subscribers.values():
            await each.rested()

    def report(self, report: Report) -> None:
        """Take note of how a run ended. Called from the loop of user code."""
        self._reports.append(report)
        if not self._is_told:
            self._is_told = True
            call_soon(self._loop, self._absorb)

    def _absorb(self) -> None:
        self._is_told = False
        while self._reports:
            report = self._reports.popleft()
            self._subscribers[report.delivery.subscription].ended(report)

    # Called by the wake-ups

    def wake(self, why: str, message: int | None = None) -> None:
        """Read now."""
        if why not in _ADDRESSED:
            self._look()

    def live(self, path: Path) -> None:
        """Read once, then wait for wake-ups, if the path tells of rows."""
        if path in self._reach.expected:
            self._reach.live(path)
            self._look()

    def gap(self, path: Path, why: str) -> None:
        """Read now."""
        self._look()

    def lost(self, path: Path, why: str) -> None:
        """Poll."""
        self._reach.lost(path)
        self._look()

    def prove(self, nonce: str) -> None:
        """Nothing: the worker sends nonces."""

    def _look(self) -> None:
        for each in self._subscribers.values():
            each.woken.set()


class _Subscriber:
    """One handler: what it reads, what waits for it, and what it emits. A slow one holds up itself alone."""

    def __init__(
        self,
        pubsub: PubSub,
        handler: Handler,
        number: int,
        limit: int,
        store: Store,
        runner: Executor,
        settings: Settings,
    ) -> None:
        self.handler = handler
        self.has_begun = False
        self.woken = anyio.Event()
        self._pubsub = pubsub
        self._number = number
        self._limit = limit
        self._store = store
        self._runner = runner
        self._pace = Pace(settings.poll_fast_seconds, settings.poll_slow_seconds)
        self._sweep_seconds = settings.sweep_seconds
        self._outage = Outage(first=0.1, cap=5.0)
        self._readers: list[Reader] = []
        # Read, while not every reader could be read yet.
        self._fresh: list[Message[Any]] = []
        self._waiting: deque[Message[Any]] = deque()
        self._running = 0
        self._is_stopping = False
        self._moved = anyio.Event()
        self._outbox: deque[Report] = deque()
        self._emitted = anyio.Event()
        self._dropped = 0
        self._warned_at = -_WARN_SECONDS

    async def read(self) -> None:
        """Read what is written from now on, for ever; a store that is away is waited for."""
        while True:
            fresh = await retrying(self._read_once, self._outage, on=StoreError, say=self._say_trouble)
            await self._take(fresh)
            if fresh:
                self._pace.active()
            else:
                await self._rest()
            await anyio.sleep(_GATHER_SECONDS)

    async def _read_once(self) -> list[Message[Any]]:
        """The messages that were not read before, each once, in the order of the ids."""
        patterns = self.handler.patterns
        self.woken = anyio.Event()
        while not self._runner.is_open(self.handler.name):
            # Messages pass by until the agent has started, as they do before a process starts.
            self._readers, self._fresh = [], []
            await self.woken.wait()
            self.woken = anyio.Event()
        if not self._readers:
            self._readers = [await Reader.begin(self._store, pattern, None) for pattern in patterns]
            self.has_begun = True
        for place, reader in enumerate(self._readers):
            self._fresh += [
                message
                for message in await reader.fresh()
                # The first pattern that matches has it.
                if not any(matches(pattern, message.key) for pattern in patterns[:place])
            ]
        fresh, self._fresh = self._fresh, []
        if self._outage.over():
            _log.info("%s hears again", self.handler.name)
        return sorted(fresh, key=lambda message: message.id) if len(patterns) > 1 else fresh

    async def _rest(self) -> None:
        seconds = self._sweep_seconds if self._pubsub.is_live else self._pace.next_seconds()
        with anyio.move_on_after(seconds):
            await self.woken.wait()

    async def _take(self, fresh: Sequence[Message[Any]]) -> None:
        """Have messages wait for the handler; when it makes no room for them in time, the oldest are dropped."""
        self._waiting.extend(fresh)
        self._pubsub.counts["heard"] += len(fresh)
        self._start()
        with anyio.move_on_after(_PATIENCE_SECONDS):
            while len(self._waiting) > _WAITING:
                self._moved = anyio.Event()
                await self._moved.wait()
        while len(self._waiting) > _WAITING:
            self._waiting.popleft()
            self._dropped += 1
            self._pubsub.counts["dropped"] += 1
        if self._dropped and anyio.current_time() >= self._warned_at + _WARN_SECONDS:
            self._warned_at = anyio.current_time()
            _log.warning(
                "%s is too slow: %d of the messages that waited for it were dropped, the oldest first; nothing is "
                'kept for deliver="each"',
                self.handler.name,
                self._dropped,
            )
            self._dropped = 0

    def _start(self) -> None:
        free = min(self._limit - self._running, len(self._waiting))
        # A page that was read while the worker was stopped comes after what waited was dropped.
        if free > 0 and not self._is_stopping:
            self._running += free
            self._runner.hand_over([Delivery(self._number, self._waiting.popleft(), "") for _ in range(free)])

    def ended(self, report: Report) -> None:
        """A run has ended: send what it emits, and only then run another in its place."""
        if report.emits:
            self._outbox.append(report)
            self._emitted.set()
        else:
            self._free()

    def _free(self) -> None:
        self._running -= 1
        self._start()
        self._moved.set()

    async def send_emits(self) -> None:
        """Send what the handler emits, each run's in one transaction and at most once, for ever."""
        while True:
            while self._outbox:
                report = self._outbox.popleft()
                try:
                    unheard = await self._store.write(report.emits)
                except StoreError as error:
                    self._pubsub.counts["emits lost"] += len(report.emits)
                    _log.warning(
                        "what %s emitted on message %s may be lost: %s",
                        self.handler.name, report.delivery.place[0], error,
                    )  # fmt: skip
                else:
                    self._pubsub.unheard.note_emitted([(self.handler.name, report.emits)], unheard)
                finally:
                    self._free()
            self._emitted = anyio.Event()
            await self._emitted.wait()

    def drop_waiting(self) -> None:
        """Nothing more is to begin."""
        self._is_stopping = True
        self._waiting.clear()
        self._moved.set()

    async def rested(self) -> None:
        """Return when nothing runs."""
        while self._running:
            self._moved = anyio.Event()
            await self._moved.wait()

    def _say_trouble(self, error: StoreError) -> None:
        _log.warning("%s hears nothing now: %s Reading again when it can.", self.handler.name, error)
