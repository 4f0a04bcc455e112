"""What the runtime gives to handlers beside their messages."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
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
            open_steps=partial(self.open_steps, handler, delivery),
            open_waits=partial(self._open_waits, handler, delivery),
            decision_links=self.decision_links,
            tell_status=self._status_of(handler, (delivery,)),
            open_text_keeper=partial(self._texts_of, handler, delivery),
        )

    def _status_of(self, handler: Handler, deliveries: Sequence[Delivery]) -> Callable[[str], None] | None:
        # Nothing is kept of a message that each process gets.
        is_shown = self.statuses is not None and handler.deliver == "once"
        return partial(self.statuses.tell, deliveries) if is_shown and self.statuses else None

    def _texts_of(self, handler: Handler, delivery: Delivery) -> TextKeeper | None:
        if handler.deliver != "once":
            raise DeclarationError(
                f"{handler.name} gets each message in every process, and a text belongs to a delivery: write it in a "
                'handler without deliver="each".'
            )
        return None if self.texts is None else self.texts.of(handler.name, delivery)

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
            tell_status=self._status_of(handler, (delivery,)),
        )

    def open_steps(self, handler: Handler, delivery: Delivery, context: Context) -> Steps:
        """Return the steps of a delivery."""
        keeper = None if self.keeper is None else self.keeper(delivery, handler.version)
        steps = Steps(context.handler, context.idempotency_key, dict(delivery.steps), keeper)
        if self.transactions is not None:
            transactions = self.transactions(handler, delivery)
            steps.transactions = transactions if keeper is None else keeper.along(transactions)
        if handler.undos is not None:
            steps.undo_of = handler.undos.record
            steps.has_undos = bool(delivery.undos) and NO_RETURN not in steps.kept
        if self.spans is not None:
            steps.span = self.spans.step
        return steps

    def _open_waits(self, handler: Handler, delivery: Delivery, steps: Steps) -> Waits:
        # A delivery to each process has no lease that it could give back.
        is_kept = self.wait_keeper is not None and handler.deliver == "once"
        keeper = self.wait_keeper(delivery) if is_kept and self.wait_keeper else None
        # What crashed its worker twice has nothing running beside it, so what it waits for may wait behind it.
        is_alone = delivery.crashes >= POISON_CRASHES
        return Waits(handler.name, steps, keeper, grace=0.0 if is_alone else GRACE_SECONDS)

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
            tell_status=self._status_of(handler, deliveries),
            messages=messages,
        )
