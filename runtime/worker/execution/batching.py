"""Batches: when one is ready to run, and the report on each of its messages."""

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from runtime.agent.handler import Handler
from runtime.agent.request_reply import answer_draft
from runtime.message import Draft
from runtime.store import Delivery, Report
from runtime.worker.execution.failure import failure, failures
from runtime.worker.execution.services import HandlerServices

# A message that crashed its worker twice runs with nothing beside it.
_POISON_CRASHES = 2


class PendingBatch:
    """The deliveries that wait for a handler of batches. Pure: time comes in.

    Args:
        size: at most so many make a batch.
        within: seconds after the first has come, when it is ready all the same.
    """

    def __init__(self, size: int, within: float) -> None:
        self._size = size
        self._within = within
        self._waiting: deque[tuple[Delivery, float]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, delivery: Delivery, now: float) -> None:
        """Have one more wait."""
        self._waiting.append((delivery, now))

    def remove(self, delivery: Delivery) -> bool:
        """Remove one that is not to run; returns whether it waited here."""
        for place, (waiting, _) in enumerate(self._waiting):
            if waiting is delivery:
                del self._waiting[place]
                return True
        return False

    def ready_in(self, now: float) -> float | None:
        """Seconds until a batch is ready, 0 when one is; None when nothing waits."""
        if not self._waiting:
            return None
        first, came_at = self._waiting[0]
        if len(self._waiting) >= self._size or first.crashes >= _POISON_CRASHES:
            return 0.0
        return max(0.0, came_at + self._within - now)

    def take(self) -> list[Delivery]:
        """The next batch, ready or not; a message that crashed its worker twice is a batch of its own."""
        batch: list[Delivery] = []
        while self._waiting and len(batch) < self._size:
            is_poison = self._waiting[0][0].crashes >= _POISON_CRASHES
            if is_poison and batch:
                break
            batch.append(self._waiting.popleft()[0])
            if is_poison:
                break
        return batch


class Batch:
    """One call of a handler with several deliveries.

    Args:
        handler: the handler to call.
        deliveries: the deliveries that gathered.
        services: the services that it may use.
        random: where the jitter of retries comes from.

    Attributes:
        handler, deliveries: as they were given.
        context: the context of the call.
        has_begun: whether its arguments were asked for.
        valid: those whose values are what the handler wants.
        reports: the reports so far, by message.
    """

    def __init__(
        self,
        handler: Handler,
        deliveries: Sequence[Delivery],
        services: HandlerServices,
        random: Random,
    ) -> None:
        self.valid: list[Delivery] = []
        self.reports: dict[int, Report] = {}
        self.has_begun = False
        self.handler = handler
        self.deliveries = deliveries
        self._random = random
        self.context = services.batch_context(handler, deliveries)

    def bind(self) -> dict[str, Any]:
        """The arguments for those that are valid; the others have failed alone."""
        self.has_begun = True
        handler, context = self.handler, self.context
        bound: list[dict[str, Any]] = []
        for delivery in self.deliveries:
            try:
                bound.append(handler.bind(delivery.message, context))
            except BaseException as error:  # noqa: BLE001 - it becomes the report
                report = failure(handler, delivery, 0.0, error, self._random)
                self.reports[delivery.place[0]] = report
            else:
                self.valid.append(delivery)
        context.messages = tuple(delivery.message for delivery in self.valid)
        if not bound:
            return {}
        signature = handler.signature
        lists = [name for name, _ in (*filter(None, [signature.value]), *signature.messages)]
        return {
            name: [each[name] for each in bound] if name in lists else argument
            for name, argument in bound[0].items()
        }

    def succeed(
        self, result: object, seconds: float, sign: Callable[[Delivery, list[Draft]], Sequence[Draft]]
    ) -> None:
        """The call returned: each is done, but for those that the handler said have failed.

        Args:
            result: what it returned.
            seconds: how long it ran.
            sign: puts what a trace needs on what was emitted because of a delivery.
        """
        context = self.context
        self.handler.emit_result(result, context)
        emitted: dict[int | None, list[Draft]] = {}
        for draft in context.emitted:
            emitted.setdefault(draft.parent_id, []).append(draft)
        self._note_failed(seconds)
        for delivery in self.valid:
            number = delivery.place[0]
            if number not in self.reports:
                drafts = emitted.get(number, [])
                if answer := answer_draft(
                    delivery.message, delivery.subscription, self.handler, context.answers.get(number)
                ):
                    drafts.append(answer)
                emits = tuple([draft.json for draft in sign(delivery, drafts)]) if drafts else ()
                self.reports[number] = Report(delivery, seconds, emits=emits)

    def fail(self, error: BaseException, seconds: float) -> None:
        """The call ended in an error: all fail that have not failed alone."""
        self._note_failed(seconds)
        left = [delivery for delivery in self.valid if delivery.place[0] not in self.reports]
        for report in failures(self.handler, left, seconds, error, self._random):
            self.reports[report.delivery.place[0]] = report

    def tell_usage(self) -> None:
        """Put the usage of the call on the report of its first message that was valid."""
        if self.context.used is not None and self.valid:
            self.reports[self.valid[0].place[0]].usage = self.context.used

    def give_back(self, seconds: float) -> None:
        """Give back what has not failed alone: the call did not come to an end."""
        for delivery in self.deliveries:
            self.reports.setdefault(delivery.place[0], Report(delivery, seconds, "released"))
        self.tell_usage()

    def _note_failed(self, seconds: float) -> None:
        failed = self.context.failed
        for delivery in self.valid:
            error = failed.get(delivery.place[0])
            if error is not None:
                report = failure(self.handler, delivery, seconds, error, self._random)
                self.reports[delivery.place[0]] = report


class BatchMember:
    """One delivery's part in a call of several: the call is cancelled when none of them is wanted any more.

    Args:
        shares: the deliveries that are still wanted, by what names them; shared by all of the batch.
        cancel: cancels the call.
    """

    __slots__ = ("_cancel", "_name", "_shares")

    def __init__(self, shares: set[int], name: int, cancel: Callable[[], object]) -> None:
        self._shares = shares
        self._name = name
        self._cancel = cancel

    def cancel(self) -> None:
        """Want this delivery no more."""
        self._shares.discard(self._name)
        if not self._shares:
            self._cancel()
