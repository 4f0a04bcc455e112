"""How does work get from the store to the handlers and back? One pump carries the plan out."""

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random

import anyio

from runtime.agent.handler import Handler
from runtime.client.requester import Requester
from runtime.errors import Blocked, StoreError, StoreUnavailable
from runtime.settings import Settings
from runtime.store import Delivery, ExchangeAnswer, Report, Store, Subscribed, WorkerCard
from runtime.store.sqlstates import remedy_of
from runtime.wakeups import ANSWER, CANCEL, Path, Reachability, Wakeups
from runtime.worker.drain import Drain
from runtime.worker.exchanger import Exchanger, Unapplied
from runtime.worker.execution.executor import Executor
from runtime.worker.execution.failure import failure
from runtime.worker.plan import LAPSING_SHARE, Lane, Look, Plan, PoisonMessages, Wait
from runtime.worker.process_stats import ProcessStats, WakeupStatus
from runtime.worker.pruner import keep_retention
from runtime.worker.scheduler import keep_time

_log = logging.getLogger("runtime.worker.dispatcher")
_BLOCKED_WARNING_SECONDS = 1.0
_LEAVE_SECONDS = 2.0


class Dispatcher:
    """The side of the runtime: talks to the store, listens for wake-ups, keeps leases.

    It lives on the runtime's own loop, in a thread of its own. What is called from elsewhere says so.

    Args:
        store: where messages live.
        wakeups: every source of wake-ups.
        card: who this worker is.
        handlers: by subscription name.
        runner: where handlers run.
        settings: paces and limits.
        poison_messages: whether to take what has crashed its worker twice.
        gauges: how this process is, told with every heartbeat.
        subscribe: declares the worker's subscriptions and returns their numbers; given True, new ones get
            the whole history.
        drainage: for a worker that ends when nothing is due any more.
    """

    def __init__(
        self,
        store: Store,
        wakeups: Sequence[Wakeups],
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
        self._random = Random()
        self._exchanger = Exchanger(
            store,
            card.id,
            settings.lease_seconds,
            lambda: {**gauges.read(), **runner.load(), **self._way_in.read()},
        )
        self._numbers: Mapping[str, int] = {}
        self._by_number: dict[int, Handler] = {}
        paths = frozenset(path for source in wakeups for path in source.paths)
        self.plan = Plan(
            settings, {}, Reachability(paths), now=time.monotonic(), poison_messages=poison_messages
        )
        self.asker = Requester(store, settings, card.id, card.announce, self.plan.reach)
        self._incarnation = ""
        self._warned: frozenset[str] = frozenset()
        # How often in a row an exchange was refused for wanting anything.
        self._wants_refused = 0

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
            self._from_outside(self._signal_now)

    def stop(self, drain_seconds: float) -> None:
        """Take no new work and end when what runs has ended, or when the seconds are over. From any thread."""
        self._from_outside(lambda: self._begin_stopping(drain_seconds))

    def look(self) -> None:
        """Look at everything once, though nothing woke this worker. From any thread."""
        self._from_outside(self._look)

    def open_and_close(self) -> None:
        """Look which handlers are open now: nothing is taken for the others. From any thread."""
        self._from_outside(self._open_and_close)

    def _open_and_close(self) -> None:
        limits = {number: self._limit(name) for name, number in self._numbers.items()}
        self.plan.allow(limits, time.monotonic())
        self._signal_now()

    def _limit(self, name: str) -> int:
        if not self._runner.is_open(name):
            return 0
        batch = self._handlers[name].batch
        # What a call holds is a batch.
        return self._runner.room(name) * (batch.size if batch else 1)

    def hint(self, why: str, message: int | None) -> None:
        """Look again, for a reason that reached another loop. From any thread."""
        self._from_outside(lambda: self.wake(why, message))

    def _look(self) -> None:
        self.plan.sweep(time.monotonic())
        self._signal_now()

    def _from_outside(self, function: Callable[[], object]) -> None:
        # A loop that has ended needs to be told nothing.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    # Called by the wake-ups

    def wake(self, why: str, message: int | None = None) -> None:
        """Look again."""
        self.counts[f"wake-ups by {why}"] += 1
        self.asker.wake()
        if why == CANCEL:
            self.plan.recall()
            self._signal_now()
        elif why != ANSWER and self.plan.wake(message):
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
            _log.warning(
                "polling: %s is gone (%s); polling goes on until a push path is live again", path, why
            )
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
        await self._introduce_first()
        if self._drainage is not None:
            await self._drainage.begin(self._store, self._card.id, tuple(self._handlers.values()))
        async with anyio.create_task_group() as tasks:
            for source in self._wakeups:
                tasks.start_soon(source.run, self)
            tasks.start_soon(self._watch_user_loop)
            tasks.start_soon(self._watch_leases)
            tasks.start_soon(self.asker.run)
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

    async def _introduce_first(self) -> None:
        """Declare everything for the first time; a store that is away is waited for."""
        attempt = 4
        while True:
            try:
                await self._introduce()
            except (StoreUnavailable, Blocked) as error:
                attempt += 1
                await self._exchanger.sit_out(error, attempt)
            else:
                self._exchanger.note_answer()
                return

    async def _introduce(self) -> None:
        """Declare this worker and its subscriptions, also again after the database forgot them."""
        incarnation = await self._store.check_schema()
        was_reset = self._incarnation not in ("", incarnation)
        # Whatever is in a database that was reset was written after that, and nothing of it may be missed.
        subscribed = await self._subscribe(was_reset)
        self._incarnation = incarnation
        self._runner.know(subscribed.numbers)
        self._numbers = subscribed.numbers
        for name, number in subscribed.numbers.items():
            self._by_number[number] = self._handlers[name]
        # What is held under numbers that are no more is reported, and refused, as it ends.
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

    async def _pump_until_stopped(self) -> None:
        plan = self.plan
        while True:
            self._is_signalled = False
            self._signal = anyio.Event()
            while self._inbox:
                plan.finished([self._inbox.popleft()])
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

    async def _give_back_what_is_left(self) -> None:
        """Past the deadline, what cannot be cancelled runs on, but it is no longer ours."""
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
            await self._carry_less(look, fault)
            return
        except StoreError as error:
            # There is no more time. Where nothing is left to report, nothing is lost either.
            if isinstance(error, StoreUnavailable) or look.done or look.failed:
                raise
            return
        if look.want:
            self._wants_refused = 0
        self._absorb(look, answer, sent_at)
        if doubt is not None:
            if look.nonce is not None:
                self.plan.prove(look.nonce)
            if answer.leased:
                await self._have(look, answer.leased, doubt)
        if answer.unknown:
            _log.warning(
                "the database does not know this worker any more; was it reset? Subscribing again; what runs goes "
                "on, and its results are refused"
            )
            await self._introduce_again()

    def _absorb(self, look: Look, answer: ExchangeAnswer, sent_at: float) -> None:
        self.plan.absorb(look, answer, sent_at=sent_at, now=time.monotonic())
        if answer.taken:
            self._soon(self._runner.hand_over, answer.taken)
        self.counts["exchanges"] += 1
        self.counts["taken"] += len(answer.taken)
        self.counts["done"] += sum(report.delivery.place not in answer.refused for report in look.done)
        for message, subscription in answer.refused:
            self.counts["refused"] += 1
            _log.warning(
                "the late result of %s on message %s was refused: its lease is no longer the current one",
                self._name(subscription),
                message,
            )
        for message, subscription in answer.lost:
            self.counts["leases lost"] += 1
            delivery = self.plan.held.get((message, subscription))
            self.plan.give_up((message, subscription))
            if delivery is not None:
                self._soon(self._runner.revoke, [delivery])
            _log.warning("the lease of %s on message %s is lost", self._name(subscription), message)
        called_off = [held for place in answer.cancelled if (held := self.plan.held.get(place))]
        if called_off:
            self._soon(self._runner.call_off, called_off)
        if look.beat:
            self._warn(answer.warnings)
        if self.plan.unannounced:
            for source in self._wakeups:
                source.doubt()

    def _warn(self, warnings: Sequence[str]) -> None:
        """Log what the database warns of; what it warned of before is not said again while it lasts."""
        for warning in warnings:
            if warning not in self._warned:
                _log.warning("%s", warning)
        self._warned = frozenset(warnings)

    def _soon(self, tell: Callable[[Sequence[Delivery]], None], deliveries: Sequence[Delivery]) -> None:
        """Tell the loop of user code something, just before this loop waits for whatever it is.

        Woken earlier, that loop would find the interpreter taken, and would have to be woken a second time.
        """
        self._untold.append((tell, deliveries))
        self._loop.call_soon(self._tell_all)

    def _tell_all(self) -> None:
        while self._untold:
            tell, deliveries = self._untold.popleft()
            tell(deliveries)

    async def _carry_less(self, look: Look, fault: Unapplied) -> None:
        """Nothing of an exchange was applied, for something in it: find that, and let everything else go on."""
        reports, remedy = look.reports, remedy_of(fault.error)
        await self._give_back(fault.leased)
        if len(reports) == 1 and not look.want:
            await self._judge(reports[0], fault.error)
        elif reports or (look.want and fault.leased):
            self.plan.put_back(look, time.monotonic(), by=remedy.shrinks_by)
        elif look.want:
            # Not refused for how much it wants, then, but for wanting anything: or it was mended meanwhile.
            self._wants_refused += 1
            self.plan.put_back(look, time.monotonic(), by=1)
            if self._wants_refused > 1:
                self._exchanger.say(fault.error)
                self.plan.put_off(time.monotonic() + self._settings.poll_slow_seconds)
        else:
            await self._renew_each(look)

    async def _judge(self, report: Report, error: StoreError) -> None:
        """A report fails alone, while an empty exchange passes: it becomes a failed attempt, or waits by itself."""
        message, subscription = report.delivery.place
        aside = self.plan.set_aside(report, time.monotonic())
        if aside.tries >= remedy_of(error).blames:
            await self._fail_instead(report, error)
        elif aside.tries == 1:
            _log.warning(
                "the report of %s on message %s waits, and others go on: %s It is tried again until it passes.",
                self._name(subscription), message, error,
            )  # fmt: skip

    async def _fail_instead(self, report: Report, reason: StoreError) -> None:
        """Report an attempt whose report cannot pass as a failed one."""
        handler = self._by_number[report.delivery.subscription]
        # Our own frames tell nobody anything, and whatever refused the report reads them too.
        reason = reason.with_traceback(None)
        reason.__cause__ = reason.__context__ = None
        failed = failure(handler, report.delivery, report.seconds, reason, self._random)
        plain = replace(failed, error="its report was refused; the worker's log says why", traceback=None)
        for each in (failed, plain):
            look, sent_at = Look(failed=[each]), time.monotonic()
            try:
                answer, _ = await self._exchanger.exchange(look)
            except Unapplied as again:
                reason = again.error
            else:
                self._absorb(look, answer, sent_at)
                return
        # Its lease will lapse; nothing else can be done from here.
        _log.error("message %s cannot even be reported as failed: %s", report.delivery.place[0], reason)
        self.plan.forget(report.delivery)

    async def _have(self, look: Look, leased: Sequence[Delivery], doubt: StoreError) -> None:
        """Deliveries are leased whose messages did not arrive: have them a few at a time, in the end one alone."""
        remedy = remedy_of(doubt)
        if len(leased) > 1 or remedy.blames == math.inf:
            await self._give_back(leased)
            self.plan.narrowing.shrink_taking(len(leased), remedy.shrinks_by)
            return
        single = Look(want=look.want, due=look.due, alone=look.alone)
        again: StoreError | None = doubt
        for _ in range(int(remedy.blames) - 1):
            # Its lease was renewed by the exchange that told of it.
            sent_at = self._exchanger.asked_at
            answer, again = await self._exchanger.exchange(single, again=True)
            if again is None or not answer.leased:
                self._absorb(single, answer, sent_at)
                return
        message, subscription = leased[0].place
        text = f"{type(again).__name__}: the message does not arrive, while everything else does: {again}"
        _log.error("message %s for %s is a dead letter: %s", message, self._name(subscription), text)
        await self._report_apart([Report(leased[0], outcome="dead", reason="failed", error=text)])

    async def _give_back(self, leased: Sequence[Delivery]) -> None:
        """Give back what was leased and not begun."""
        if leased:
            await self._report_apart([Report(delivery, outcome="released") for delivery in leased])

    async def _report_apart(self, reports: list[Report]) -> None:
        """Report deliveries that never began here."""
        look, sent_at = Look(failed=reports), time.monotonic()
        try:
            answer, _ = await self._exchanger.exchange(look)
        except Unapplied as fault:
            _log.warning("%d deliveries are left to come due again: %s", len(reports), fault.error)
        else:
            self._absorb(look, answer, sent_at)

    async def _renew_each(self, look: Look) -> None:
        """Leases could not be renewed together: one by one, so that one that cannot be holds up no other."""
        if len(look.renew) == 1:
            return
        for delivery in look.renew:
            single, sent_at = Look(renew=[delivery]), time.monotonic()
            with suppress(Unapplied):
                answer, _ = await self._exchanger.exchange(single)
                self._absorb(single, answer, sent_at)

    async def _introduce_again(self) -> None:
        """Declare everything anew, however long it takes until the store lets us."""
        attempt = 0
        while not self.plan.stopping:
            try:
                await self._introduce()
            except StoreError as error:
                attempt += 1
                await self._exchanger.sit_out(error, attempt)
            else:
                self._exchanger.note_answer()
                return

    async def _watch_leases(self) -> None:
        """End attempts whose leases cannot be renewed in time: before another worker may take them over."""
        while True:
            await anyio.sleep(self._settings.lease_seconds * LAPSING_SHARE / 2)
            lapsing = self.plan.lapsing(time.monotonic())
            if lapsing:
                names = sorted({self._name(delivery.subscription) for delivery in lapsing})
                _log.warning(
                    "%d leases could not be renewed and end now (%s): their handlers are cancelled, and the "
                    "deliveries come due again",
                    len(lapsing),
                    ", ".join(names),
                )
                self.counts["leases lapsed"] += len(lapsing)
                self._soon(self._runner.revoke, lapsing)

    async def _watch_user_loop(self) -> None:
        """Notice a handler that blocks the loop of user code, and stop renewing for one that does so for long."""
        warned = False
        while True:
            await anyio.sleep(_BLOCKED_WARNING_SECONDS)
            if self.plan.held:
                self._runner.tick()
                blocked = time.monotonic() - self._runner.ticked_at - _BLOCKED_WARNING_SECONDS
            else:
                # Nobody was asked for a sign of life, so its absence means nothing.
                blocked, self._runner.ticked_at = 0.0, time.monotonic()
            is_blocked = blocked > _BLOCKED_WARNING_SECONDS
            if is_blocked and not warned:
                names = ", ".join(self._runner.running) or "a handler"
                _log.warning(
                    "the event loop of the handlers has been blocked for %.1f s; running: %s. "
                    "Declare a handler that blocks as a plain function: it then runs in a thread.",
                    blocked,
                    names,
                )
            warned = is_blocked
            if self.plan.renews_async != (blocked < self._settings.blocked_loop_seconds):
                self.plan.renews_async = not self.plan.renews_async
                self._signal_now()

    def _begin_stopping(self, drain_seconds: float) -> None:
        if self.plan.stopping:
            return
        self.plan.stopping = True
        _log.info("stopping: %d running, which have %.0f s to finish", len(self.plan.held), drain_seconds)
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
        handler = self._by_number.get(subscription)
        return handler.name if handler else f"subscription {subscription}"
