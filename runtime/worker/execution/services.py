"""What the runtime gives to handlers beside their messages."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from runtime.agent.batch import BatchContext
from runtime.agent.context import Context
from runtime.agent.handler import Handler
from runtime.agent.services import Reads, Requests
from runtime.agent.step import StepKeeper, Steps
from runtime.agent.step_names import NO_RETURN
from runtime.agent.undo import UndoContext
from runtime.agent.waiting import WaitKeeper, Waits
from runtime.broadcast import SendBroadcast
from runtime.message import Draft, Message
from runtime.store import Delivery, Report


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
    """

    worker: str
    states: Mapping[str, Any] = field(default_factory=dict)
    requests: Requests[Context] | None = None
    reads: Reads | None = None
    send_broadcast: SendBroadcast | None = None
    spans: Spans | None = None
    keeper: Callable[[Delivery], StepKeeper] | None = None
    wait_keeper: Callable[[Delivery], WaitKeeper] | None = None

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
        )

    def open_steps(self, handler: Handler, delivery: Delivery, context: Context) -> Steps:
        """Return the steps of a delivery."""
        keeper = None if self.keeper is None else self.keeper(delivery)
        steps = Steps(context.handler, context.idempotency_key, dict(delivery.steps), keeper)
        if handler.undos is not None:
            steps.undo_of = handler.undos.record
            steps.has_undos = bool(delivery.undos) and NO_RETURN not in steps.kept
        if self.spans is not None:
            steps.span = self.spans.step
        return steps

    def _open_waits(self, handler: Handler, delivery: Delivery, steps: Steps) -> Waits:
        # A delivery to each process has no lease that it could give back.
        is_kept = self.wait_keeper is not None and handler.deliver == "once"
        return Waits(
            handler.name, steps, self.wait_keeper(delivery) if is_kept and self.wait_keeper else None
        )

    def batch_context(self, handler: Handler, messages: tuple[Message[Any], ...]) -> BatchContext:
        """Return the context of an attempt with several messages."""
        return BatchContext(
            messages[0],
            handler.name,
            self.worker,
            state=self.states.get(handler.agent),
            asks=self.requests,
            reads=self.reads,
            send_broadcast=self.send_broadcast,
            messages=messages,
        )
