"""A worker: one process that runs handlers.

Handlers run on the loop that awaits `Worker.run`. The store, the wake-ups and the dispatcher have a thread and a loop
of their own, so that user code may block, crash or hog its loop and costs neither a lease nor the socket.
"""

import asyncio
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio
from anyio.abc import TaskGroup

from runtime.agent.agent import Agent
from runtime.agent.decision_link import DecisionLinks
from runtime.agent.handler import Handler
from runtime.agent.known_options import takes_known_options
from runtime.agent.request_reply import reply_key
from runtime.agent.step import StepKeeper
from runtime.client.broadcaster import refuse_broadcast
from runtime.client.factories import (
    compare_places,
    open_broadcaster,
    open_store,
    open_telemetry,
    open_wakeups,
    own_client,
    reachable_by,
    settings_of,
)
from runtime.client.requester import Requester
from runtime.errors import RuntimeFault, first_fault
from runtime.extras import needing
from runtime.settings import Settings
from runtime.store import Store, WorkerCard
from runtime.wakeups import Reachability, Wakeups
from runtime.wakeups.fanout import Fanout
from runtime.worker import event_loop
from runtime.worker.dispatcher import Dispatcher
from runtime.worker.drain import Drain
from runtime.worker.execution.attempt import Attempt, Observer
from runtime.worker.execution.executor import Executor
from runtime.worker.execution.handler_reads import HandlerReads
from runtime.worker.execution.handler_requests import HandlerRequests
from runtime.worker.execution.handler_statuses import HandlerStatuses
from runtime.worker.execution.handler_steps import DeliverySteps
from runtime.worker.execution.handler_texts import HandlerTexts
from runtime.worker.execution.handler_waits import DeliveryWaits, WaitHints
from runtime.worker.execution.lifespan import Lifespans
from runtime.worker.execution.loggers import steady
from runtime.worker.execution.services import HandlerServices, transactions_of
from runtime.worker.execution.step_writer import StepWriter
from runtime.worker.parts import WorkerParts
from runtime.worker.poison import PoisonMessages
from runtime.worker.process_stats import ProcessStats
from runtime.worker.pubsub import PubSub
from runtime.worker.subscriptions import handlers_of, limit_of, subscribe

if TYPE_CHECKING:
    from runtime.wakeups.client_channel import OwnClient
    from runtime.webhooks.sender import Sender
    from runtime.worker.metrics import Metrics
    from supabase import AsyncClient

__all__ = ["Attempt", "Worker"]

_log = logging.getLogger("runtime.worker")
PLACE_LOG = "runtime.worker.place"  # of the line that says where the stream is
_LEAVE_SECONDS = 2.0


@takes_known_options
class Worker:
    """One process that runs the handlers of some agents until it is stopped.

    Args:
        agents: whose handlers to run.
        settings: where the stream is, paces and limits; read from the environment by default.
        client: a supabase async client of your own: it says where the stream is, and its Realtime connection, on the
            loop that awaits `run`, carries the wake-ups. Requests go over a connection of the runtime's own.
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
        settings: Settings | None = None,
        *,
        client: "AsyncClient | None" = None,
        observer: Observer | None = None,
        poison_messages: PoisonMessages = PoisonMessages.ALSO,
        drainage: Drain | None = None,
    ) -> None:
        # A test puts one in its place that dies.
        self.step_keeper: Callable[..., StepKeeper] = DeliverySteps
        settings = settings or Settings.load()
        self._client = client
        if client is not None:
            settings = settings_of(client, settings)
        self.id: UUID = uuid4()
        self.name = f"{platform.node() or 'worker'}-{os.getpid()}-{self.id.hex[:6]}"
        self.handlers: list[Handler] = handlers_of(agents)
        self._agents = [agent for agent in agents if agent.handlers]
        self._posts = _posts(self.handlers, settings)
        if self._posts is not None:
            self.handlers = self._posts.handlers
        self._settings = settings
        self._observer = observer
        self._poison_messages = poison_messages
        self._is_quarantine = poison_messages is PoisonMessages.ONLY
        self._drainage = drainage
        self._limits = {handler.name: limit_of(handler, settings) for handler in self.handlers}
        self._subscribed = [handler for handler in self.handlers if handler.deliver == "once"]
        # A quarantine worker does not listen beside the others.
        listeners = [] if self._is_quarantine or drainage is not None else self.handlers
        self._listening = [each for each in listeners if each.deliver == "each"]
        self._executor: Executor | None = None
        self._parts: WorkerParts | None = None
        self._started = threading.Lock()
        self._is_stopping = False
        self._drain_seconds = settings.drain_seconds
        self._stopped_at = math.inf

    def __repr__(self) -> str:
        return f"<Worker {self.name} [{self.state}, {len(self.handlers)} handlers]>"

    @property
    def state(self) -> str:
        """One of starting, live, polling, quarantine and stopping."""
        # Use the flag set by `stop()`: the plan learns of it later, on its own thread.
        if self._is_stopping:
            return "stopping"
        if self._parts is None:
            return "starting"
        if (plan := self._parts.dispatcher.plan).stopping:
            return "stopping"
        return "quarantine" if self._is_quarantine else "live" if plan.reach.is_live else "polling"

    @property
    def is_ready(self) -> bool:
        """Whether it has subscribed, its agents have started, and it does not end."""
        if self._parts is None or self._is_stopping:
            return False
        return self._parts.dispatcher.ready.is_set() and self._parts.dispatcher.is_whole

    @property
    def live_paths(self) -> frozenset[str]:
        """The push paths that are proved to deliver."""
        return frozenset() if self._parts is None else frozenset(self._parts.dispatcher.plan.reach.lively)

    @property
    def counts(self) -> dict[str, int]:
        """What happened so far: exchanges, taken, done, refused, wake-ups by path; heard and dropped."""
        return {} if self._parts is None else {**self._parts.pubsub.counts, **self._parts.dispatcher.counts}

    @property
    def is_listening(self) -> bool:
        """Whether the handlers that get each message hear what is written now."""
        return not self._listening or (self._parts is not None and self._parts.pubsub.has_begun)

    def stop(self) -> None:
        """Take no new work, let running handlers finish within the drain deadline, and end. From any thread."""
        with self._started:
            self._is_stopping = True
            self._stopped_at = min(self._stopped_at, time.monotonic())
            if self._parts is not None:
                self._parts.stop(self._drain_seconds)

    def look(self) -> None:
        """Look for work now, though nothing woke this worker. From any thread."""
        with self._started:
            if self._parts is not None:
                self._parts.dispatcher.look()

    def wake(self, why: str, message: int | None = None) -> None:
        """Take a hint that something was written, as from one more source of wake-ups. From any thread."""
        with self._started:
            if self._parts is not None:
                self._parts.wake(why, message)

    async def run(self) -> None:
        """Run until `stop` is called, or until cancelled: then handlers are cancelled and their work given back.

        Raises:
            SettingsError: nothing says where the stream is.
            Unauthorized: the key or the role is wrong.
            MigrationMissing: the database lacks the schema.
            LifespanFailed: no agent is left that could work.
        """
        if place := self._settings.describe_stream():
            # A serverless application makes a worker for each call: there, this line would be noise.
            level = logging.INFO if self._drainage is None else logging.DEBUG
            logging.getLogger(PLACE_LOG).log(level, "the stream is %s", place)
        lifespans = Lifespans(
            {agent.name: agent.hooks.lifespan for agent in self._agents},
            moved=self._open_or_close,
            give_up=self.stop,
        )
        try:
            async with (
                transactions_of(self._settings, self.id) as transactions,
                lifespans.kept(self._seconds_left),
                anyio.create_task_group() as tasks,
            ):
                await self._run_handlers(
                    tasks, HandlerServices(self.name, lifespans.states, transactions=transactions)
                )
        except BaseExceptionGroup as group:
            # One fault of ours needs no group around it.
            faults, rest = group.split(RuntimeFault)
            if faults is not None and rest is None:
                raise first_fault(faults) from None
            raise

    async def _run_handlers(self, tasks: TaskGroup, services: HandlerServices) -> None:
        """Run handlers on this loop, and everything else in a thread, until that has ended."""
        metrics, services.spans = _metrics(self._settings), open_telemetry(self._settings)
        services.decision_links = DecisionLinks.of(self._settings)
        observers = [self._observer, None if metrics is None else metrics.observe]
        self._executor = executor = Executor(
            tasks,
            self.handlers,
            self._limits,
            services,
            observers=[observer for observer in observers if observer is not None],
            moved=self._change_room,
        )
        ended = anyio.Event()

        async def run_thread() -> None:
            try:
                await anyio.to_thread.run_sync(
                    event_loop.run,
                    self._run_dispatcher,
                    executor,
                    services,
                    metrics,
                    own_client(self._client),
                    limiter=anyio.CapacityLimiter(1),
                )
            finally:
                ended.set()

        tasks.start_soon(run_thread)
        try:
            async with self._posts or nullcontext():
                await ended.wait()
        finally:
            self._drain_seconds = 0 if not ended.is_set() else self._drain_seconds
            self.stop()
        # Handlers that could be neither finished nor cancelled in time were given back: nothing waits for them.
        tasks.cancel_scope.cancel()

    def _open_or_close(self, agent: str) -> None:
        """Take work for an agent whose lifespan has started, or no longer for one whose lifespan broke."""
        if self._executor is not None:
            self._executor.release(agent)
        if self._parts is not None:
            self._parts.dispatcher.open_and_close()
            self._parts.pubsub.open_and_close()

    def _change_room(self) -> None:
        """Take less for a handler whose threads do not end, or more again."""
        if self._parts is not None:
            self._parts.dispatcher.open_and_close()

    def _seconds_left(self) -> float:
        """How long taking down what agents have set up may take: the rest of the drain, or a moment at least."""
        since = max(0.0, time.monotonic() - self._stopped_at)
        return max(_LEAVE_SECONDS, self._drain_seconds - since)

    async def _run_dispatcher(
        self,
        executor: Executor,
        services: HandlerServices,
        metrics: "Metrics | None",
        client: "OwnClient | None",
    ) -> None:
        """The runtime's own side, on its own loop."""
        store = await open_store(self._settings)
        try:
            sources = self._open_wakeups(client)
            reach = Reachability(frozenset(path for source in sources for path in source.paths))
            stats = ProcessStats()
            each = [pattern for handler in self._listening for pattern in handler.patterns]
            identity = {"pid": os.getpid(), "host": platform.node(), "is_quarantine": self._is_quarantine}
            details = {**identity, "each": each, **stats.read()}
            card = WorkerCard(self.id, self.name, reachable_by(sources), details)
            requester = Requester(store, self._settings, self.id, card.announce, reach)
            broadcaster = open_broadcaster(self._settings, store)
            # No delivery has been taken yet: no handler runs before these are set.
            services.requests = HandlerRequests(self.handlers, requester, services.spans)
            services.reads = HandlerReads(store, requester)
            services.keeper = partial(self.step_keeper, steps := StepWriter(store, requester.submit))
            hints = WaitHints()
            services.wait_keeper = partial(DeliveryWaits, store, requester.submit, hints, services.spans)
            services.statuses = statuses = HandlerStatuses(store)
            services.texts = texts = HandlerTexts.beside(broadcaster, store, requester.submit, self._settings)
            services.send_broadcast = refuse_broadcast if broadcaster is None else broadcaster.send
            pubsub = PubSub(self._listening, self._limits, store, executor, self._settings)
            wakeups = Fanout(sources, [pubsub] if self._listening else [], [requester.wake, hints.wake])
            dispatcher = Dispatcher(
                store,
                wakeups,
                reach,
                card,
                {handler.name: handler for handler in self._subscribed},
                self._limits,
                executor,
                self._settings,
                self._poison_messages,
                stats,
                partial(subscribe, store, card, self._subscribed),
                self._drainage,
            )
            # The libraries of the store and the wake-ups have been loaded by now.
            steady()
            with self._started:
                self._parts = WorkerParts(asyncio.get_running_loop(), wakeups, dispatcher, pubsub)
                if self._is_stopping:
                    self._parts.stop(self._drain_seconds)
            async with anyio.create_task_group() as tasks:
                if metrics is not None:
                    tasks.start_soon(self._answer_probes, metrics, dispatcher, store)
                if self._drainage is None:
                    tasks.start_soon(compare_places, self._settings, store)
                if self._posts is not None:
                    tasks.start_soon(self._posts.keep, store)
                if broadcaster is not None:
                    tasks.start_soon(broadcaster.run)
                for run in (statuses.run, texts.run, steps.run, requester.run):
                    tasks.start_soon(run)
                tasks.start_soon(pubsub.run, dispatcher.ready)
                await dispatcher.run()
                # Handlers that still run are cancelled when the time to drain is over.
                with anyio.move_on_after(self._drain_seconds + _LEAVE_SECONDS):
                    await pubsub.drained()
                    await statuses.flush()
                    await texts.flush()
                if broadcaster is not None:
                    await broadcaster.flush()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await store.close()

    def _open_wakeups(self, client: "OwnClient | None") -> list[Wakeups]:
        # A quarantine worker is woken by the time alone: a crash shows when a lease ends.
        if self._is_quarantine or self._drainage is not None:
            return []
        patterns = [pattern for each in self.handlers for pattern in each.patterns]
        return open_wakeups(self._settings, self.id, [*patterns, reply_key(self.id)], client)

    async def _answer_probes(self, metrics: "Metrics", dispatcher: Dispatcher, store: Store) -> None:
        from runtime.worker.health import HealthEndpoints

        port = self._settings.metrics_port
        assert port is not None
        await HealthEndpoints(metrics, dispatcher, store).run(self._settings.metrics_host, port)


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
    """Return what counts attempts, if a port for it is set; its library is not loaded otherwise."""
    if settings.metrics_port is None:
        return None
    with needing("RUNTIME_METRICS_PORT", "serve"):
        # Also what answers later, in a thread: a worker that cannot answer ends before it takes work.
        from runtime.worker.health import HealthEndpoints  # noqa: F401
        from runtime.worker.metrics import Metrics

    return Metrics()
