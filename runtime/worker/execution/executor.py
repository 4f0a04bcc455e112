"""The executor: it runs attempts on the loop of user code, within the limits of their handlers."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import anyio
from anyio.abc import TaskGroup

from runtime.agent.handler import Handler
from runtime.store import Delivery, Report
from runtime.worker.event_loop import call_soon
from runtime.worker.execution.attempt import Attempt, Attempts, Observer, tell
from runtime.worker.execution.batching import BatchMember, PendingBatch
from runtime.worker.execution.cancellation import TASK_STATES, leave_scopes, shake_off_cancellation
from runtime.worker.execution.loggers import steady
from runtime.worker.execution.services import HandlerServices
from runtime.worker.execution.standstill import StandstillFinder

_log = logging.getLogger("runtime.handlers")
# How long deliveries that were taken wait for a thread that was given up on.
_PATIENCE_SECONDS = 5.0


class Executor:
    """Runs handlers within their limits, on the loop of user code, and reports their attempts.

    Args:
        tasks: the group its handlers run in, on the loop of user code.
        handlers: what to run.
        limits: how many of each may run at once, by the handler's name.
        services: what handlers may use; an agent is open while it has a state there.
        observers: told of every attempt, on the loop of user code.
        moved: told on the loop of user code that a handler has more room now, or less.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        handlers: Iterable[Handler],
        limits: Mapping[str, int],
        services: HandlerServices,
        *,
        observers: Sequence[Observer] = (),
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        steady()
        self._tasks = tasks
        self._by_name = {handler.name: handler for handler in handlers}
        self._limits = limits
        self._handlers: dict[int, Handler] = {}
        self._report: dict[int, Callable[[Report], None]] = {}
        self._states = services.states
        self._attempting = Attempts(
            self._by_name.values(), limits, services, self._leave, self._leave_no_more
        )
        # The limits, less the threads of plain functions that were given up on and run on: each keeps its slot.
        self._rooms = dict(limits)
        self._moved = moved
        self._observers = observers
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Delivery] = deque()
        self._is_called = threading.Event()
        self._waiting: dict[int, deque[Delivery]] = {}
        # The deliveries of handlers of batches wait here instead.
        self._gathering: dict[int, PendingBatch] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._running: dict[int, int] = {}
        self._starting: set[int] = set()
        self._is_stopping = False
        self._scopes: set[anyio.CancelScope] = set()
        # By the id of a delivery object that runs, since the same delivery may be taken again meanwhile; None for a
        # plain function, which cannot be cancelled.
        self._attempts: dict[int, anyio.CancelScope | BatchMember | None] = {}
        # The ids of those that run, and are to be reported as cancelled however they end.
        self._called_off: set[int] = set()
        self.standstills = StandstillFinder(self._by_name.values())
        self.ticked_at = time.monotonic()
        self._called_at = self.ticked_at
        self._lag_seconds = 0.0

    @property
    def running(self) -> list[str]:
        """The names of the handlers that run now."""
        names = [self._handlers[number].name for number, count in self._running.items() if count]
        return names + [name for name in self.left if name not in names]

    @property
    def left(self) -> list[str]:
        """The names of the plain handlers that were given up on, and run on in their threads."""
        return [name for name, room in self._rooms.items() if room < self._limits[name]]

    def room(self, name: str) -> int:
        """How many of this handler may run at once, now. From any thread."""
        return self._rooms[name]

    @property
    def silent_seconds(self) -> float:
        """How long the loop of user code has not answered a call. From any thread."""
        return time.monotonic() - self._called_at if self._is_called.is_set() else 0.0

    def load(self) -> dict[str, float]:
        """How many handlers run, and the longest delay of their loop since the last call, in seconds."""
        lag, self._lag_seconds = max(self._lag_seconds, self.silent_seconds), 0.0
        left = sum(self._limits[name] - self._rooms[name] for name in self.left)
        return {"running": sum(self._running.values()) + left, "loop_lag_seconds": round(lag, 3)}

    def is_open(self, name: str) -> bool:
        """Whether this handler may run: the lifespan of its agent, if it has one, has started. From any thread."""
        return self._by_name[name].agent in self._states

    def release(self, agent: str) -> None:
        """Give back what waits for an agent that has closed. Called on the loop of user code."""
        self._start_each(lambda handler: handler.agent == agent)

    def know(self, numbers: Mapping[str, int], report: Callable[[Report], None]) -> None:
        """Learn the numbers of subscriptions. Called from the runtime's thread, before they are used.

        Args:
            numbers: by the handler's name.
            report: called with the reports of their deliveries; from any thread, it must return at once.
        """
        for name, number in numbers.items():
            self._report[number] = report
            self._waiting.setdefault(number, deque())
            self._running.setdefault(number, 0)
            self._handlers[number] = handler = self._by_name[name]
            if handler.batch is not None:
                self._gathering.setdefault(number, PendingBatch(handler.batch.size, handler.batch.within))

    def hand_over(self, deliveries: Iterable[Delivery]) -> None:
        """Take deliveries to be run. Called from the runtime's thread; returns at once."""
        self._inbox.extend(deliveries)
        self._call()

    def tick(self) -> None:
        """Ask the loop of user code for a sign of life. Called from the runtime's thread."""
        self._call()

    def stop_waiting(self) -> None:
        """Start nothing more, and give back what has not begun. Called from the runtime's thread."""
        self._is_stopping = True
        self._call()

    def cancel(self) -> None:
        """Cancel what still runs, and give it back. Called from the runtime's thread."""
        call_soon(self._loop, self._cancel)

    def revoke(self, deliveries: Sequence[Delivery]) -> None:
        """End or skip the attempts of deliveries whose leases are lost. Called from the runtime's thread."""
        call_soon(self._loop, partial(self._revoke, deliveries))

    def _revoke(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if self._remove_waiting(delivery):
                self._tell(Report(delivery, outcome="released"))
            elif id(delivery) in self._attempts:
                self._cancel_one(delivery)

    def call_off(self, deliveries: Sequence[Delivery]) -> None:
        """End attempts that an operator has cancelled. Called from the runtime's thread."""
        call_soon(self._loop, partial(self._call_off, deliveries))

    def _call_off(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            name = id(delivery)
            if self._remove_waiting(delivery):
                self._tell(Report(delivery, outcome="cancelled", delay=0.0))
            elif name in self._attempts and name not in self._called_off:
                self._called_off.add(name)
                self._cancel_one(delivery)

    def _cancel_one(self, delivery: Delivery) -> None:
        if (scope := self._attempts[id(delivery)]) is not None:
            scope.cancel()
            return
        _log.warning(
            "%s on message %s runs on in its thread, where a plain function cannot be stopped: its slot stays taken "
            "until it ends, and its result is dropped",
            self._handlers[delivery.subscription].name, delivery.place[0],
        )  # fmt: skip

    def _leave(self, handler: Handler) -> None:
        """A plain function was given up on: until it has ended in its thread, there is room for one less."""
        self._rooms[handler.name] -= 1
        room, limit = self._rooms[handler.name], self._limits[handler.name]
        _log.warning(
            "%s was given up on and runs on in its thread, where a plain function cannot be stopped: its slot stays "
            "taken until it ends; %d of its %d slots are left",
            handler.name, room, limit,
        )  # fmt: skip
        self._moved()
        if room == 0:
            self._loop.call_later(_PATIENCE_SECONDS, self._wait_no_longer, handler)

    def _wait_no_longer(self, handler: Handler) -> None:
        """Where threads that do not end take every slot, give back what waits: other workers may have room."""
        if self._rooms[handler.name] > 0:
            return
        for number, each in tuple(self._handlers.items()):
            # A message that each process gets can be handled by no other worker.
            if each is handler and handler.deliver == "once":
                while gathering := self._gathering.get(number):
                    self._give_back(gathering.take())
                while waiting := self._waiting[number]:
                    self._give_back([waiting.popleft()])
        self._loop.call_later(_PATIENCE_SECONDS, self._wait_no_longer, handler)

    def _leave_no_more(self, handler: Handler) -> None:
        self._rooms[handler.name] += 1
        _log.info("a thread of %s that was given up on has ended", handler.name)
        self._moved()
        self._start_each(lambda each: each is handler)

    def _remove_waiting(self, delivery: Delivery) -> bool:
        """Remove a delivery that has not begun; returns whether it waited here."""
        if (gathering := self._gathering.get(delivery.subscription)) is not None:
            return gathering.remove(delivery)
        waiting = self._waiting[delivery.subscription]
        if delivery not in waiting:
            return False
        waiting.remove(delivery)
        return True

    def _call(self) -> None:
        # One call covers every delivery that arrives before it is made.
        if not self._is_called.is_set():
            self._called_at = time.monotonic()
            self._is_called.set()
            call_soon(self._loop, self._begin)

    def _begin(self) -> None:
        self._is_called.clear()
        self.ticked_at = time.monotonic()
        self._lag_seconds = max(self._lag_seconds, self.ticked_at - self._called_at)
        while self._inbox:
            delivery = self._inbox.popleft()
            if (gathering := self._gathering.get(delivery.subscription)) is not None:
                gathering.add(delivery, self.ticked_at)
            else:
                self._waiting[delivery.subscription].append(delivery)
        self._start_each(lambda _: True)

    def _start_each(self, is_meant: Callable[[Handler], bool]) -> None:
        """Have the deliveries run, or given back, that wait for these handlers."""
        for number, handler in tuple(self._handlers.items()):
            if not is_meant(handler):
                continue
            self._start(number)
            if number in self._gathering:
                self._start_batch(number)

    def _start(self, number: int) -> None:
        """Have one handler's waiting deliveries run, or given back while its agent is closed."""
        waiting, handler = self._waiting[number], self._handlers[number]
        # `_may_begin`, written out: this line runs twice for each attempt.
        while waiting and (self._is_stopping or handler.agent not in self._states):
            self._give_back([waiting.popleft()])
        # One task is started at a time, and it starts the next: handlers that never wait need only one.
        if waiting and number not in self._starting and self._running[number] < self._rooms[handler.name]:
            self._starting.add(number)
            self._running[number] += 1
            self._tasks.start_soon(self._work, number)

    async def _work(self, number: int) -> None:
        """Run waiting deliveries of one handler, one after another, until there are none."""
        self._starting.discard(number)
        waiting, handler = self._waiting[number], self._handlers[number]
        task = asyncio.current_task()
        assert task is not None
        state, rooms, name = TASK_STATES.get(task), self._rooms, handler.name
        try:
            while waiting and self._running[number] <= rooms[name] and not self._is_stopping:
                # One scope serves many attempts: only one that was cancelled needs another after it.
                with anyio.CancelScope() as scope:
                    self._scopes.add(scope)
                    try:
                        while (
                            waiting
                            and self._running[number] <= rooms[name]
                            and not self._is_stopping
                            and not scope.cancel_called
                        ):
                            delivery = waiting.popleft()
                            self._start(number)
                            await self._run(handler, delivery, scope)
                            del delivery
                            if state is not None and state.cancel_scope is not scope:
                                leave_scopes(handler, state, scope)
                            if task.cancelling():
                                await shake_off_cancellation()
                    finally:
                        self._scopes.discard(scope)
        finally:
            self._running[number] -= 1
            self._start(number)

    def _start_batch(self, number: int) -> None:
        """Have the next batch run when it is ready, or given back when everything ends."""
        gathering, handler = self._gathering[number], self._handlers[number]
        if (timer := self._timers.pop(number, None)) is not None:
            timer.cancel()
        while len(gathering) and not self._may_begin(handler):
            self._give_back(gathering.take())
        while self._running[number] < self._rooms[handler.name]:
            seconds = gathering.ready_in(time.monotonic())
            if seconds is None:
                return
            if seconds > 0:
                self._timers[number] = self._loop.call_later(seconds, self._start_batch, number)
                return
            self._running[number] += 1
            self._tasks.start_soon(self._work_batch, number, gathering.take())

    def _may_begin(self, handler: Handler) -> bool:
        return not self._is_stopping and handler.agent in self._states

    def _give_back(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._tell(Report(delivery, outcome="released"))

    async def _work_batch(self, number: int, deliveries: list[Delivery]) -> None:
        """Run one batch, and have the next one run."""
        handler = self._handlers[number]
        if not self._may_begin(handler):
            self._running[number] -= 1
            self._give_back(deliveries)
            return
        try:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    await self._run_batch(handler, deliveries, scope)
                    state = TASK_STATES.get(asyncio.current_task())
                    if state is not None and state.cancel_scope is not scope:
                        leave_scopes(handler, state, scope)
                finally:
                    self._scopes.discard(scope)
        finally:
            self._running[number] -= 1
            self._start_batch(number)

    async def _run_batch(
        self, handler: Handler, deliveries: list[Delivery], scope: anyio.CancelScope
    ) -> None:
        began, clock = time.time(), time.monotonic()
        batch = self._attempting.gathered(handler, deliveries)
        names = {id(delivery) for delivery in deliveries}
        try:
            for name in tuple(names):
                self._attempts[name] = BatchMember(names, name, scope.cancel) if handler.is_async else None
            await self._attempting.many(batch, clock)
        finally:
            for delivery in deliveries:
                del self._attempts[id(delivery)]
            batch.give_back(time.monotonic() - clock)
            for report in batch.reports.values():
                self._end(handler, report, began)

    async def _run(self, handler: Handler, delivery: Delivery, scope: anyio.CancelScope) -> None:
        began, clock = time.time(), time.monotonic()
        report: Report | None = None
        try:
            self._attempts[id(delivery)] = scope if handler.is_async or delivery.is_undoing else None
            report = await self._attempting.one(handler, delivery, clock)
        finally:
            del self._attempts[id(delivery)]
            if report is None:
                usage = self._attempting.usage_of_ended(delivery)
                report = Report(delivery, time.monotonic() - clock, "released", usage=usage)
            self._end(handler, report, began)

    def _end(self, handler: Handler, report: Report, began: float) -> None:
        """Report an attempt, and tell the observer of it."""
        if self._called_off and id(report.delivery) in self._called_off:
            self._called_off.discard(id(report.delivery))
            # One that was finished in its handler's own transaction was faster.
            if report.answer is None:
                report = Report(report.delivery, report.seconds, "cancelled", delay=0.0, usage=report.usage)
                _log.warning("%s on message %s was cancelled", handler.name, report.delivery.place[0])
        self._tell(report)
        if self._observers and report.outcome != "released":
            tell(self._observers, Attempt(handler, report.delivery, began, report))

    def _tell(self, report: Report) -> None:
        self._report[report.delivery.subscription](report)

    def _cancel(self) -> None:
        for scope in self._scopes:
            scope.cancel()
