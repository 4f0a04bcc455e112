"""The dispatcher: one pump that carries out the plan, between the store and the handlers."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio

from runtime.agent.handler import Handler
from runtime.client.unheard import UnheardKeys
from runtime.errors import Blocked, StoreError, StoreUnavailable
from runtime.settings import Settings
from runtime.store import Delivery, ExchangeAnswer, Look, Report, Store, Subscribed, WorkerCard
from runtime.wakeups import ANSWER, CANCEL, DUE, Path, Reachability, Wakeups
from runtime.worker.drain import Drain
from runtime.worker.event_loop import call_soon
from runtime.worker.exchanger import Exchanger, Unapplied
from runtime.worker.execution.executor import Executor
from runtime.worker.isolation import Isolation, name_of
from runtime.worker.lanes import Lane
from runtime.worker.plan import Plan, Wait
from runtime.worker.poison import PoisonMessages
from runtime.worker.process_stats import ProcessStats, WakeupStatus
from runtime.worker.pruner import keep_retention
from runtime.worker.scheduler import keep_time
from runtime.worker.watchdog import Watchdog

_log = logging.getLogger("runtime.worker.dispatcher")
_LEAVE_SECONDS = 2.0


class Dispatcher:
    """Talks to the store, listens for wake-ups, and keeps leases.

    It lives on the runtime's own loop, in a thread of its own; methods for other threads say so.

    Args:
        store: where messages live.
        wakeups: every source of wake-ups, as one.
        reach: which push paths are live; the dispatcher keeps it.
        card: what the database is told about this worker.
        handlers: by subscription name.
        runner: where handlers run.
        settings: paces and limits.
        poison_messages: whether to take messages that crashed their worker twice.
        gauges: the state of this process, sent with every heartbeat.
        subscribe: declares the worker's subscriptions and returns their numbers; given True, new ones get
            the whole history.
        drainage: for a worker that ends when nothing is due any more.
    """

    def __init__(
        self,
        store: Store,
        wakeups: Wakeups,
        reach: Reachability,
        card: WorkerCard,
        handlers: Mapping[str, Handler],
        limits: Mapping[str, int],
        runner: Executor,
        settings: Settings,
        poison_messages: PoisonMessages,
        gauges: ProcessStats,
        subscribe: Callable[[bool], Awaitable[Subscribed]],
        drainage: Drain | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._unheard = UnheardKeys(_log)
        self.ready = anyio.Event()
        self._store = store
        self._wakeups = wakeups
        self._card = card
        self._handlers = handlers
        self._limits = limits
        self._runner = runner
        self._settings = settings
        self._gauges = gauges
        self._way_in = WakeupStatus()
        self._subscribe = subscribe
        self._drainage = drainage
        self._loop = asyncio.get_running_loop()
        self._signal = anyio.Event()
        self._is_signalled = False
        self._inbox: deque[Report] = deque()
        self._untold: deque[tuple[Callable[[Sequence[Delivery]], None], Sequence[Delivery]]] = deque()
        self._exchanger = Exchanger(
            store,
            card.id,
            settings.lease_seconds,
            lambda: {**gauges.read(), **runner.load(), **self._way_in.read()},
        )
        self._numbers: Mapping[str, int] = {}
        self._by_number: dict[int, Handler] = {}
        self.plan = Plan(settings, {}, reach, now=time.monotonic(), poison_messages=poison_messages)
        self._incarnation = ""
        self._warned: frozenset[str] = frozenset()
        self._isolation = Isolation(
            self.plan, self._exchanger, self._by_number, settings.poll_slow_seconds, self._absorb
        )

    @property
    def is_whole(self) -> bool:
        """Whether every agent takes work: the lifespan of none has yet to start."""
        return all(self._runner.is_open(name) for name in self._handlers)

    # Called from the loop of user code

    def report(self, report: Report) -> None:
        """Take note of how an attempt ended. Called from the loop of user code."""
        self._inbox.append(report)
        if not self._is_signalled:
            self._is_signalled = True
            call_soon(self._loop, self._signal_now)

    def stop(self, drain_seconds: float) -> None:
        """Take no new work and end when what runs has ended, or when the seconds are over. From any thread."""
        call_soon(self._loop, lambda: self._begin_stopping(drain_seconds))

    def look(self) -> None:
        """Look at everything once, though nothing woke this worker. From any thread."""
        call_soon(self._loop, self._look)

    def open_and_close(self) -> None:
        """Look which handlers are open now: nothing is taken for the others. From any thread."""
        call_soon(self._loop, self._open_and_close)

    def _open_and_close(self) -> None:
        limits = {number: self._limit(name) for name, number in self._numbers.items()}
        self.plan.allow(limits, time.monotonic())
        self._signal_now()

    def _limit(self, name: str) -> int:
        if not self._runner.is_open(name):
            return 0
        batch = self._handlers[name].batch
        # Each call of a handler of batches holds a whole batch.
        return self._runner.room(name) * (batch.size if batch else 1)

    def _look(self) -> None:
        self.plan.sweep(time.monotonic())
        self._signal_now()

    # Called by the wake-ups

    def wake(self, why: str, message: int | None = None) -> None:
        """Look again."""
        self.counts[f"wake-ups by {why}"] += 1
        if why == CANCEL:
            self.plan.recall()
            self._signal_now()
        elif why != ANSWER and self.plan.wake(message, tells_due=why == DUE):
            self._signal_now()

    def live(self, path: Path) -> None:
        """A push path delivers: sweep, and poll no longer."""
        if self.plan.live(path, time.monotonic()):
            _log.info("live: woken by %s; one sweep, then no more polling", path)
        self._way_in.note(is_live=True)
        self._signal_now()

    def gap(self, path: Path, why: str) -> None:
        """A push path may have missed something: sweep."""
        _log.info("%s may have missed something (%s): sweeping", path, why)
        self.plan.sweep(time.monotonic())
        self._signal_now()

    def lost(self, path: Path, why: str) -> None:
        """A push path went; without another one, poll."""
        if self.plan.lost(path, time.monotonic()):
            _log.warning("polling until a push path is live again: %s is gone (%s)", path, why)
        if not self.plan.reach.is_live:
            self._way_in.note(is_live=False, why=why)
        self._signal_now()

    def prove(self, nonce: str) -> None:
        """Send a nonce through the database with the next exchange."""
        self.plan.prove(nonce)
        self._signal_now()

    # The loop

    async def run(self) -> None:
        """Work until stopped.

        Raises:
            StoreError: the store cannot be used at all, found out at the start.
        """
        await self._exchanger.persist(self._introduce, (StoreUnavailable, Blocked))
        if self._drainage is not None:
            await self._drainage.begin(self._store, self._card.id, tuple(self._handlers.values()))
        watchdog = Watchdog(self.plan, self._runner, self._settings, self._lapse, self._signal_now)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._wakeups.run, self)
            tasks.start_soon(watchdog.run)
            tasks.start_soon(keep_retention, self._store, self._card.id, self._settings)
            if not self.plan.is_quarantine and self._drainage is None:
                tasks.start_soon(keep_time, self._store, self._card.id, tuple(self._handlers.values()))
            if not self.plan.reach.expected and not self.plan.is_quarantine and self._drainage is None:
                _log.info("polling: every push path is switched off")
            self.ready.set()
            try:
                await self._pump_until_stopped()
            finally:
                tasks.cancel_scope.cancel()
        if self._drainage is not None:
            await self._drainage.end(self._store)
        with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
            await self._leave()
        _log.info("%s has stopped", self._card.name)

    async def _introduce(self) -> None:
        """Declare this worker and its subscriptions, also again after the database forgot them."""
        incarnation = await self._store.check_schema()
        was_reset = self._incarnation not in ("", incarnation)
        # Every message in a database that was reset was written after the reset, and none may be missed.
        subscribed = await self._subscribe(was_reset)
        self._incarnation = incarnation
        self._runner.know(subscribed.numbers, self.report)
        self._numbers = subscribed.numbers
        for name, number in subscribed.numbers.items():
            self._by_number[number] = self._handlers[name]
        # Deliveries that are held under old numbers are reported as they end, and refused.
        for lane in self.plan.lanes.values():
            lane.limit = 0
        for name, number in subscribed.numbers.items():
            lane = self.plan.lanes.setdefault(number, Lane(0))
            handler = self._handlers[name]
            lane.limit, lane.in_threads = self._limit(name), not handler.is_async
            lane.takes_ahead = handler.rate is None and handler.concurrency_total is None
        self._warn(subscribed.warnings)
        self.plan.unsettled = subscribed.unsettled
        self.plan.begin_anew(time.monotonic())
        self._exchanger.note_answer()

    async def _pump_until_stopped(self) -> None:
        plan = self.plan
        while True:
            self._is_signalled = False
            self._signal = anyio.Event()
            self._collect()
            if plan.stopping and (not plan.held or self._exchanger.stop_asking.is_set()):
                await self._give_back_what_is_left()
                return
            step = plan.decide(time.monotonic())
            if isinstance(step, Wait):
                self._tell_all()
                with anyio.move_on_after(step.seconds):
                    await self._signal.wait()
                continue
            await self._carry_out(step)
            if self._drainage is not None and plan.is_idle and not self._inbox:
                self._begin_stopping(0)

    def _collect(self) -> None:
        """Hand the plan the reports that came from the loop of user code."""
        while self._inbox:
            report = self._inbox.popleft()
            self.plan.finished([report])
            if report.answer is not None:
                self._note_done([report], report.answer)

    async def _give_back_what_is_left(self) -> None:
        """Give back, past the deadline, the deliveries whose handlers cannot be cancelled; those run on."""
        while isinstance(step := self.plan.decide(time.monotonic()), Look) and (step.done or step.failed):
            await self._carry_out(step)
        left = [Report(delivery, outcome="released") for delivery in self.plan.held.values()]
        if left:
            names = ", ".join(self._runner.running)
            _log.warning("giving back %d deliveries whose handlers do not end: %s", len(left), names)
            await self._carry_out(Look(failed=left))

    async def _carry_out(self, look: Look) -> None:
        """Make one exchange and act on its answer."""
        sent_at = time.monotonic()
        try:
            answer, doubt = await self._exchanger.exchange(look)
        except Unapplied as fault:
            await self._isolation.carry_less(look, fault)
            return
        except StoreError as error:
            # There is no more time. If there is nothing to report, nothing is lost.
            if isinstance(error, StoreUnavailable) or look.done or look.failed:
                raise
            return
        # Those that ended meanwhile: whether all has run out says whether to take further ahead.
        self._collect()
        if look.want:
            self._isolation.wants_refused = 0
        self._absorb(look, answer, sent_at)
        if doubt is not None:
            if look.nonce is not None:
                self.plan.prove(look.nonce)
            if answer.leased:
                await self._isolation.have(look, answer.leased, doubt)
        if answer.unknown:
            _log.warning(
                "the database does not know this worker any more; was it reset? Subscribing again; what runs goes "
                "on, and its results are refused"
            )
            await self._exchanger.persist(self._introduce_again, (StoreError,))

    def _absorb(self, look: Look, answer: ExchangeAnswer, sent_at: float) -> None:
        self.plan.absorb(look, answer, sent_at=sent_at, now=time.monotonic())
        if answer.taken:
            self._soon(self._runner.hand_over, answer.taken)
        self.counts.update(exchanges=1, taken=len(answer.taken))
        self._note_done(look.done, answer)
        for message, subscription in answer.refused:
            self.counts["refused"] += 1
            _log.warning(
                "the late result of %s on message %s was refused: its lease is no longer the current one",
                self._name(subscription), message,
            )  # fmt: skip
        for message, subscription in answer.lost:
            self.counts["leases lost"] += 1
            delivery = self.plan.held.get((message, subscription))
            self.plan.leases.give_up((message, subscription))
            if delivery is not None:
                self._soon(self._runner.revoke, [delivery])
            _log.warning("the lease of %s on message %s is lost", self._name(subscription), message)
        called_off = [held for place in answer.cancelled if (held := self.plan.held.get(place))]
        if called_off:
            self._soon(self._runner.call_off, called_off)
        if look.beat:
            self._warn(answer.warnings)
        if self.plan.unannounced:
            self._wakeups.doubt()

    def _note_done(self, reports: Sequence[Report], answer: ExchangeAnswer) -> None:
        """Count what was finished, and tell of the keys it has emitted that nobody listens to."""
        self.counts["done"] += sum(report.delivery.place not in answer.refused for report in reports)
        if answer.unheard:
            self._unheard.note_emitted(
                [(self._name(each.delivery.subscription), each.emits) for each in reports], answer.unheard
            )

    def _warn(self, warnings: Sequence[str]) -> None:
        """Log the warnings of the database, each once while it lasts."""
        for warning in warnings:
            if warning not in self._warned:
                _log.warning("%s", warning)
        self._warned = frozenset(warnings)

    def _soon(self, tell: Callable[[Sequence[Delivery]], None], deliveries: Sequence[Delivery]) -> None:
        """Tell the loop of user code something, just before this loop waits.

        Woken earlier, that loop would find the interpreter taken, and would have to be woken a second time.
        """
        self._untold.append((tell, deliveries))
        self._loop.call_soon(self._tell_all)

    def _tell_all(self) -> None:
        while self._untold:
            tell, deliveries = self._untold.popleft()
            tell(deliveries)

    async def _introduce_again(self) -> None:
        """Declare everything anew, unless the worker is about to end."""
        if not self.plan.stopping:
            await self._introduce()

    def _lapse(self, lapsing: Sequence[Delivery]) -> None:
        """Cancel the attempts whose leases are about to end."""
        names = sorted({self._name(delivery.subscription) for delivery in lapsing})
        _log.warning(
            "%d leases could not be renewed and end now (%s): their handlers are cancelled, and the deliveries come "
            "due again",
            len(lapsing), ", ".join(names),
        )  # fmt: skip
        self.counts["leases lapsed"] += len(lapsing)
        self._soon(self._runner.revoke, lapsing)

    def _begin_stopping(self, drain_seconds: float) -> None:
        if self.plan.stopping:
            return
        self.plan.stopping = True
        if running := len(self.plan.held):
            _log.info("stopping: %d running, with %.0f s to finish", running, drain_seconds)
        if not self.ready.is_set():
            self._exchanger.stop_asking.set()
        self._runner.stop_waiting()
        self._loop.call_later(drain_seconds, self._runner.cancel)
        # A store that is away must not hold up the end for ever.
        self._loop.call_later(drain_seconds + _LEAVE_SECONDS, self._exchanger.stop_asking.set)
        self._signal_now()

    async def _leave(self) -> None:
        try:
            await self._store.operate("stream_leave", worker=str(self._card.id))
        except StoreError as error:
            _log.info("could not say goodbye: %s", error)

    def _signal_now(self) -> None:
        self._signal.set()

    def _name(self, subscription: int) -> str:
        return name_of(self._by_number, subscription)
