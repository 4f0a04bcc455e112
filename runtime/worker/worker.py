"""What is one process that runs handlers? A store, wake-ups, a dispatcher in a thread of its own, and a runner."""

import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio

from runtime.agent.agent import Agent
from runtime.agent.handler import Handler
from runtime.agent.request_reply import reply_key
from runtime.client.broadcaster import NO_TRANSPORT, Broadcaster
from runtime.client.factories import (
    compare_places,
    open_broadcaster,
    open_store,
    open_telemetry,
    open_wakeups,
    reachable_by,
)
from runtime.errors import DeclarationError, RuntimeFault, SettingsError
from runtime.extras import needing
from runtime.settings import Settings
from runtime.store import Report, Store, Subscribed, Subscription, WorkerCard
from runtime.worker import event_loop
from runtime.worker.dispatcher import Dispatcher
from runtime.worker.drain import Drain
from runtime.worker.execution.attempt import Attempt, Observer
from runtime.worker.execution.executor import Executor
from runtime.worker.execution.handler_requests import HandlerRequests
from runtime.worker.execution.lifespan import Lifespans
from runtime.worker.execution.loggers import steady
from runtime.worker.plan import PoisonMessages
from runtime.worker.process_stats import ProcessStats
from runtime.worker.pubsub import PubSub

if TYPE_CHECKING:
    from runtime.webhooks.sender import Sender
    from runtime.worker.metrics import Metrics

__all__ = ["Attempt", "Worker"]

_log = logging.getLogger("runtime.worker")
_THREADS = 10
_LEAVE_SECONDS = 2.0


class Worker:
    """One process that runs the handlers of some agents until it is stopped.

    Handlers run on the loop that awaits `run`; everything else has a thread and a loop of its own, so that
    user code may block, crash or hog its loop and costs neither a lease nor the socket.

    Args:
        agents: whose handlers to run.
        settings: where the stream is, paces and limits.
        observer: told of every attempt, on the loop of user code.
        poison_messages: whether to take deliveries that have crashed their worker twice. Where a supervisor keeps a
            quarantine worker for them, the others never do, and it takes nothing else.
        drainage: for a worker that ends by itself when nothing is due any more; no socket wakes it.

    Raises:
        DeclarationError: there is no handler, or two agents share a name.
        SettingsError: a webhook's secret is missing, or its target may not be reached.
    """

    def __init__(
        self,
        agents: Iterable[Agent],
        settings: Settings,
        *,
        observer: Observer | None = None,
        poison_messages: PoisonMessages = PoisonMessages.ALSO,
        drainage: Drain | None = None,
    ) -> None:
        self.id: UUID = uuid4()
        self.name = f"{platform.node() or 'worker'}-{os.getpid()}-{self.id.hex[:6]}"
        agents = list(agents)
        self.handlers: list[Handler] = _handlers(agents)
        self._agents = [agent for agent in agents if agent.handlers]
        self._posts = _posts(self.handlers, settings)
        if self._posts is not None:
            self.handlers = self._posts.handlers
        self._settings = settings
        self._observer = observer
        self._poison_messages = poison_messages
        self._drainage = drainage
        self._limits = {handler.name: _limit(handler, settings) for handler in self.handlers}
        self._subscribed = [handler for handler in self.handlers if handler.deliver == "once"]
        # A quarantine process is there for what crashes; it is not one more that hears everything.
        self._listening = [
            handler
            for handler in self.handlers
            if handler.deliver == "each" and poison_messages is not PoisonMessages.ONLY and drainage is None
        ]
        self._dispatcher: Dispatcher | None = None
        self._each: PubSub | None = None
        self._runner: Executor | None = None
        self._broadcaster: Broadcaster | None = None
        self._started = threading.Lock()
        self._is_stopping = False
        self._drain_seconds = settings.drain_seconds
        self._stopped_at = math.inf

    def __repr__(self) -> str:
        state = "starting" if self._dispatcher is None else self.state
        return f"<Worker {self.name} [{state}, {len(self.handlers)} handlers]>"

    @property
    def state(self) -> str:
        """One of starting, live, polling, quarantine and stopping."""
        # Asked of who was told, not of the plan, which hears of it a moment later on its own loop.
        if self._is_stopping:
            return "stopping"
        if self._dispatcher is None:
            return "starting"
        plan = self._dispatcher.plan
        if self._poison_messages is PoisonMessages.ONLY and not plan.stopping:
            return "quarantine"
        return "stopping" if plan.stopping else "live" if plan.reach.is_live else "polling"

    @property
    def is_ready(self) -> bool:
        """Whether it has subscribed, its agents have started, and it does not end."""
        dispatcher = self._dispatcher
        return (
            dispatcher is not None
            and dispatcher.ready.is_set()
            and dispatcher.is_whole
            and not self._is_stopping
        )

    @property
    def live_paths(self) -> frozenset[str]:
        """The push paths that are proved to deliver."""
        return frozenset() if self._dispatcher is None else frozenset(self._dispatcher.plan.reach.lively)

    @property
    def counts(self) -> dict[str, int]:
        """What happened so far: exchanges, taken, done, refused, wake-ups by path; heard and dropped."""
        heard = {} if self._each is None else dict(self._each.counts)
        return heard if self._dispatcher is None else {**heard, **self._dispatcher.counts}

    @property
    def is_listening(self) -> bool:
        """Whether the handlers that get each message hear what is written now."""
        return not self._listening or (self._each is not None and self._each.has_begun)

    def stop(self) -> None:
        """Take no new work, let running handlers finish within the drain deadline, and end. From any thread."""
        with self._started:
            self._is_stopping = True
            self._stopped_at = min(self._stopped_at, time.monotonic())
            if self._dispatcher is not None:
                self._dispatcher.stop(self._drain_seconds)
            if self._each is not None:
                self._each.stop()

    def look(self) -> None:
        """Look for work now, though nothing woke this worker. From any thread."""
        with self._started:
            if self._dispatcher is not None:
                self._dispatcher.look()

    def wake(self, why: str, message: int | None = None) -> None:
        """Take a hint that something was written, as from one more source of wake-ups. From any thread."""
        with self._started:
            if self._dispatcher is not None:
                self._dispatcher.hint(why, message)

    async def run(self) -> None:
        """Run until `stop` is called, or until cancelled: then handlers are cancelled and their work given back.

        Raises:
            SettingsError: nothing says where the stream is.
            Unauthorized: the key or the role is wrong.
            MigrationMissing: the database lacks the schema.
            LifespanFailed: no agent is left that could work.
        """
        # A drained worker is made for each call of a serverless application: once is enough there.
        _log.log(
            logging.INFO if self._drainage is None else logging.DEBUG,
            "the stream is %s",
            self._settings.told(),
        )
        lifespans = Lifespans(
            {agent.name: agent.hooks.lifespan for agent in self._agents},
            moved=self._open_or_close,
            give_up=self.stop,
        )
        try:
            async with lifespans.kept(self._seconds_left), anyio.create_task_group() as tasks:
                metrics, spans = _metrics(self._settings), open_telemetry(self._settings)
                asks = HandlerRequests(self.handlers, None if spans is None else spans.emitting)
                self._runner = runner = Executor(
                    tasks,
                    self.handlers,
                    self._limits,
                    worker=self.name,
                    report=self._report,
                    states=lifespans.states,
                    observer=_all_of(self._observer, None if metrics is None else metrics.observe),
                    spans=spans,
                    asks=asks,
                    send_broadcast=self._send_broadcast,
                    moved=self._change_room,
                )
                ended = anyio.Event()
                tasks.start_soon(self._run_thread, runner, asks, metrics, ended.set)
                try:
                    async with self._posts or nullcontext():
                        await ended.wait()
                finally:
                    self._drain_seconds = 0 if not ended.is_set() else self._drain_seconds
                    self.stop()
                # What could be neither finished nor cancelled in time was given back: it is not waited for.
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # One fault of ours needs no group around it.
            faults, rest = group.split(RuntimeFault)
            if faults is not None and rest is None:
                raise first_fault(faults) from None
            raise

    def _open_or_close(self, agent: str) -> None:
        """Take work for an agent whose lifespan has started, or no longer for one whose lifespan broke."""
        if self._runner is not None:
            self._runner.release(agent)
        if self._dispatcher is not None:
            self._dispatcher.open_and_close()
        if self._each is not None:
            self._each.open_and_close()

    def _change_room(self) -> None:
        """Take less for a handler whose threads do not end, or more again."""
        if self._dispatcher is not None:
            self._dispatcher.open_and_close()

    def _seconds_left(self) -> float:
        """How long taking down what agents have set up may take: the rest of the drain, or a moment at least."""
        since = max(0.0, time.monotonic() - self._stopped_at)
        return max(_LEAVE_SECONDS, self._drain_seconds - since)

    def _report(self, report: Report) -> None:
        if report.delivery.subscription < 0:
            if self._each is not None:
                self._each.report(report)
        elif self._dispatcher is not None:
            self._dispatcher.report(report)

    def _send_broadcast(self, key: str, text: str) -> None:
        if self._broadcaster is None:
            raise SettingsError(NO_TRANSPORT)
        self._broadcaster.send(key, text)

    async def _run_thread(
        self, runner: Executor, asks: HandlerRequests, metrics: "Metrics | None", ended: Callable[[], None]
    ) -> None:
        try:
            await anyio.to_thread.run_sync(
                event_loop.run, self._run_dispatcher, runner, asks, metrics, limiter=anyio.CapacityLimiter(1)
            )
        finally:
            ended()

    async def _run_dispatcher(
        self, runner: Executor, asks: HandlerRequests, metrics: "Metrics | None"
    ) -> None:
        """The runtime's own side, on its own loop."""
        store = await open_store(self._settings)
        try:
            patterns = [pattern for each in self.handlers for pattern in each.patterns]
            patterns.append(reply_key(self.id))
            # A quarantine worker is woken by the time alone: a crash shows when a lease ends.
            is_quarantine = self._poison_messages is PoisonMessages.ONLY
            is_woken = not is_quarantine and self._drainage is None
            wakeups = open_wakeups(self._settings, self.id, patterns) if is_woken else []
            each = None
            if self._listening:
                each = PubSub(self._listening, self._limits, store, runner, self._settings)
                wakeups = [each.hearing(source) for source in wakeups]
            gauges = ProcessStats()
            details = {
                "pid": os.getpid(), "host": platform.node(), "is_quarantine": is_quarantine, **gauges.read(),
            }  # fmt: skip
            card = WorkerCard(self.id, self.name, reachable_by(wakeups), details)
            dispatcher = Dispatcher(
                store,
                wakeups,
                card,
                {handler.name: handler for handler in self._subscribed},
                self._limits,
                runner,
                self._settings,
                self._poison_messages,
                gauges,
                lambda with_history: self._subscribe(store, card, with_history),
                self._drainage,
            )
            asks.asker = dispatcher.asker
            # What a store and wake-ups need has been loaded by now.
            steady()
            with self._started:
                self._dispatcher, self._each = dispatcher, each
                self._broadcaster = open_broadcaster(self._settings, store)
                if self._is_stopping:
                    dispatcher.stop(self._drain_seconds)
                    if each is not None:
                        each.stop()
            async with anyio.create_task_group() as tasks:
                if metrics is not None:
                    tasks.start_soon(self._answer_probes, metrics, dispatcher, store)
                if self._drainage is None:
                    tasks.start_soon(compare_places, self._settings, store)
                if each is not None:
                    tasks.start_soon(self._listen, each, dispatcher)
                if self._posts is not None:
                    tasks.start_soon(self._posts.keep, store)
                if self._broadcaster is not None:
                    tasks.start_soon(self._broadcaster.run)
                await dispatcher.run()
                if each is not None:
                    # What runs is cancelled when the time to drain is over.
                    with anyio.move_on_after(self._drain_seconds + _LEAVE_SECONDS):
                        await each.drained()
                if self._broadcaster is not None:
                    await self._broadcaster.flush()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await store.close()

    async def _listen(self, each: PubSub, dispatcher: Dispatcher) -> None:
        await dispatcher.ready.wait()
        await each.run()

    async def _answer_probes(self, metrics: "Metrics", dispatcher: Dispatcher, store: Store) -> None:
        from runtime.worker.health import HealthEndpoints

        port = self._settings.metrics_port
        assert port is not None
        await HealthEndpoints(metrics, dispatcher, store).run(self._settings.metrics_host, port)

    async def _subscribe(self, store: Store, card: WorkerCard, with_history: bool) -> Subscribed:
        declared = [_subscription(handler) for handler in self._subscribed]
        if with_history:
            declared = [replace(each, start="earliest") for each in declared]
        subscribed = await store.subscribe(card, declared)
        _log.info("%s works for %d subscriptions at %s", self.name, len(subscribed.numbers), store.place)
        return subscribed


def _posts(handlers: Sequence[Handler], settings: Settings) -> "Sender | None":
    """What posts to targets, where there are any; its libraries are not loaded otherwise."""
    if all(handler.target is None for handler in handlers):
        return None
    from runtime.webhooks.sender import Sender

    if not settings.telemetry:
        return Sender(handlers, settings)
    from runtime.client.telemetry import outgoing

    return Sender(handlers, settings, trace=outgoing)


def _metrics(settings: Settings) -> "Metrics | None":
    """What counts, where somebody may ask; its library is not loaded otherwise."""
    if settings.metrics_port is None:
        return None
    with needing("RUNTIME_METRICS_PORT", "serve"):
        # Also what answers later, in a thread: a worker that cannot answer ends before it takes work.
        from runtime.worker.health import HealthEndpoints  # noqa: F401
        from runtime.worker.metrics import Metrics

    return Metrics()


def _all_of(*observers: Observer | None) -> Observer | None:
    """One observer that tells all of them; None where there is none."""
    wanted = [observer for observer in observers if observer is not None]
    if len(wanted) <= 1:
        return next(iter(wanted), None)

    def tell(attempt: Attempt) -> None:
        for observer in wanted:
            observer(attempt)

    return tell


def _handlers(agents: Iterable[Agent]) -> list[Handler]:
    handlers: dict[str, Handler] = {}
    for agent in agents:
        for handler in agent.handlers:
            if handler.name in handlers:
                raise DeclarationError(f"{handler.name} is declared by two agents. Rename one of them.")
            handlers[handler.name] = handler
    if not handlers:
        raise DeclarationError("No agent has a handler: decorate a function with @agent.on(…).")
    return list(handlers.values())


def _limit(handler: Handler, settings: Settings) -> int:
    """How many of a handler may run at once in this worker; threads are dearer than tasks."""
    if handler.concurrency is not None:
        return handler.concurrency
    if handler.batch is not None:
        # The worker's own limit counts messages, however they are handed over.
        return max(1, min(settings.concurrency // handler.batch.size, _THREADS))
    return settings.concurrency if handler.is_async else min(settings.concurrency, _THREADS)


def _subscription(handler: Handler) -> Subscription:
    return Subscription(
        name=handler.name,
        agent=handler.agent,
        patterns=handler.patterns,
        ordered=handler.ordered,
        dead_blocks=handler.dead_blocks,
        start=handler.start,
        max_attempts=handler.retry.attempts,
        must_exist=handler.target is not None and handler.target.secret_name is None,
        rate_amount=None if handler.rate is None else handler.rate.amount,
        rate_seconds=None if handler.rate is None else handler.rate.seconds,
        concurrency_total=handler.concurrency_total,
    )


def first_fault(group: BaseExceptionGroup[RuntimeFault]) -> RuntimeFault:
    """The first fault in a group, however deep it lies."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RuntimeFault)
    return error
