"""What the runtime gives to handlers beside their messages."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias
from uuid import UUID

from runtime.agent.batch import BatchContext
from runtime.agent.context import Context
from runtime.agent.decision_link import DecisionLinks
from runtime.agent.handler import Handler
from runtime.agent.services import Reads, Requests
from runtime.agent.step import StepKeeper, Steps
from runtime.agent.step_names import NO_RETURN
from runtime.agent.text import TextKeeper
from runtime.agent.transaction import Transactions
from runtime.agent.undo import UndoContext
from runtime.agent.waiting import GRACE_SECONDS, WaitKeeper, Waits
from runtime.broadcast import SendBroadcast
from runtime.client.factories import open_transactions
from runtime.errors import DeclarationError
from runtime.message import Draft
from runtime.settings import Settings
from runtime.store import Delivery, Report
from runtime.worker.execution.handler_statuses import HandlerStatuses
from runtime.worker.execution.handler_texts import HandlerTexts
from runtime.worker.poison import POISON_CRASHES

TransactionsOf: TypeAlias = Callable[[Handler, Delivery], Transactions]
"""Returns what opens the transactions of a delivery."""


@asynccontextmanager
async def transactions_of(settings: Settings, worker: UUID) -> AsyncIterator[TransactionsOf | None]:
    """Have connections for the transactions of handlers, on this loop; None over the REST API."""
    if (store := open_transactions(settings)) is None:
        yield None
        return
    from runtime.worker.execution.handler_transactions import HandlerTransactions

    try:
        yield HandlerTransactions(store, worker).of
    finally:
        await store.close()


class Spans(Protocol):
    """What makes a trace of attempts."""

    def handling(self, handler: str, worker: str, delivery: Delivery) -> AbstractContextManager[Any]:
        """The span of one attempt, current while it runs."""

    def handling_batch(
        self, handler: str, worker: str, deliveries: Sequence[Delivery]
    ) -> AbstractContextManager[list[Any]]:
        """A span for each delivery of an attempt they share; none of them is current."""

    def emitting(self, drafts: Sequence[Draft], span: Any = None) -> list[Draft]:
        """The drafts with the trace context in their headers: that of the span, or of the current one."""

    def step(self, name: str) -> AbstractContextManager[Any]:
        """The span of one step, current while its function runs."""

    def waiting(self) -> str | None:
        """The trace context of the current span, which a wait keeps."""

    def went_on(self, outcomes: Sequence[Mapping[str, Any] | None]) -> None:
        """Link the current span with those that began these waits, and with the messages that have ended them."""

    def reported(self, span: Any, handler: str, report: Report) -> None:
        """How the attempt of this span ended."""


@dataclass(slots=True)
class HandlerServices:
    """What every handler of a worker may use.

    Attributes:
        worker: the worker's name.
        states: what the lifespans of the agents that are open yielded; it may change on the loop of user code.
        requests: sends the requests of handlers.
        reads: reads the stream for them.
        send_broadcast: sends what handlers broadcast; called from any thread.
        spans: makes a trace of the attempts, where one is wanted.
        keeper: returns what keeps the steps of a delivery.
        wait_keeper: returns what keeps the waits of a delivery.
        decision_links: makes links that decide approvals, where the settings have a secret for them.
        statuses: shows where deliveries are.
        texts: keeps what handlers write piece by piece.
        transactions: returns what opens the transactions of a delivery; None over the REST API.
    """

    worker: str
    states: Mapping[str, Any] = field(default_factory=dict)
    requests: Requests[Context] | None = None
    reads: Reads | None = None
    send_broadcast: SendBroadcast | None = None
    spans: Spans | None = None
    keeper: Callable[[Delivery, str | None], StepKeeper] | None = None
    wait_keeper: Callable[[Delivery], WaitKeeper] | None = None
    decision_links: DecisionLinks | None = None
    statuses: HandlerStatuses | None = None
    texts: HandlerTexts | None = None
    transactions: TransactionsOf | None = None

    def context(self, handler: Handler, delivery: Delivery) -> Context:
        """Return the context of an attempt with one delivery."""
        return Context(
            delivery.message,
            handler.name,
            self.worker,
            state=self.states.get(handler.agent),
            asks=self.requests,
            reads=self.reads,
            send_broadcast=self.send_broadcast,
            work=DeliveryWork(self, handler, (delivery,)),
            decision_links=self.decision_links,
        )

    def undo_context(self, handler: Handler, delivery: Delivery) -> UndoContext:
        """Return the context of undos."""
        return UndoContext(
            delivery.message,
            handler.name,
            self.worker,
            state=self.states.get(handler.agent),
            asks=self.requests,
            reads=self.reads,
            send_broadcast=self.send_broadcast,
            work=DeliveryWork(self, handler, (delivery,)),
        )

    def batch_context(self, handler: Handler, deliveries: Sequence[Delivery]) -> BatchContext:
        """Return the context of an attempt with several deliveries."""
        messages = tuple([delivery.message for delivery in deliveries])
        return BatchContext(
            messages[0],
            handler.name,
            self.worker,
            state=self.states.get(handler.agent),
            asks=self.requests,
            reads=self.reads,
            send_broadcast=self.send_broadcast,
            decision_links=self.decision_links,
            work=DeliveryWork(self, handler, deliveries),
            messages=messages,
        )


class DeliveryWork:
    """Keeps what deliveries have beyond an attempt, as a `WorkKeeper`; one for each attempt, so it is small.

    Args:
        services: those of the worker.
        handler: that handles the deliveries.
        deliveries: the one delivery, or those of a batch, which share nothing but a status.
    """

    __slots__ = ("_deliveries", "_handler", "_services")

    def __init__(self, services: HandlerServices, handler: Handler, deliveries: Sequence[Delivery]) -> None:
        self._services = services
        self._handler = handler
        self._deliveries = deliveries

    def open_steps(self, handler: str, idempotency_key: str) -> Steps:
        """Return the steps of the delivery."""
        services, declared, delivery = self._services, self._handler, self._deliveries[0]
        keeper = None if services.keeper is None else services.keeper(delivery, declared.version)
        steps = Steps(handler, idempotency_key, dict(delivery.steps), keeper)
        if services.transactions is not None:
            transactions = services.transactions(declared, delivery)
            steps.transactions = transactions if keeper is None else keeper.along(transactions)
        if declared.undos is not None:
            steps.undo_of = declared.undos.record
            steps.has_undos = bool(delivery.undos) and NO_RETURN not in steps.kept
        if services.spans is not None:
            steps.span = services.spans.step
        return steps

    def open_waits(self, steps: Steps) -> Waits:
        """Return the waits of the delivery."""
        delivery, wait_keeper = self._deliveries[0], self._services.wait_keeper
        # A delivery to each process has no lease that it could give back.
        keeper = wait_keeper(delivery) if wait_keeper and self._handler.deliver == "once" else None
        # What crashed its worker twice has nothing running beside it, so what it waits for may wait behind it.
        is_alone = delivery.crashes >= POISON_CRASHES
        return Waits(self._handler.name, steps, keeper, grace=0.0 if is_alone else GRACE_SECONDS)

    def open_texts(self) -> TextKeeper | None:
        """Return what keeps the texts of the delivery."""
        if self._handler.deliver != "once":
            raise DeclarationError(
                f"{self._handler.name} gets each message in every process, and a text belongs to a delivery: write it "
                'in a handler without deliver="each".'
            )
        texts = self._services.texts
        return None if texts is None else texts.of(self._handler.name, self._deliveries[0])

    def tell_status(self, text: str) -> None:
        """Show where the deliveries are."""
        # Nothing is kept of a message that each process gets.
        if self._services.statuses is not None and self._handler.deliver == "once":
            self._services.statuses.tell(self._deliveries, text)
