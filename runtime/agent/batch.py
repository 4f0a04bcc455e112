"""The context of a handler of batches, which tells the outcome of each message by itself."""

from dataclasses import dataclass, field
from typing import Any

from runtime.agent.context import MAX_EMITS, MAX_EMITTED_BYTES, Context
from runtime.agent.step import Steps
from runtime.agent.text import TextKeeper
from runtime.encoding.json import decode, encode
from runtime.errors import DeclarationError, InvalidValue
from runtime.message import Draft, Message

# A batch may emit as much as this many calls of one message.
_CALLS = 4


@dataclass(frozen=True, slots=True)
class Batching:
    """How many messages one call of a handler gets.

    Attributes:
        size: the most messages in one call.
        within: seconds after the first message until an incomplete batch is handed over.
    """

    size: int
    within: float


@dataclass(slots=True)
class BatchContext(Context):
    """What a handler of batches may know and do beside its messages; one per call.

    Attributes:
        message: the first message.
        messages: the whole batch.
        failed: the errors of single messages, by id.
        answers: the answers to single requests, by id.
    """

    messages: tuple[Message[Any], ...] = ()
    failed: dict[int, Exception] = field(default_factory=dict)
    answers: dict[int, Any] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> dict[str, Any]:
        """The fields of this call's log records: those of the first message, and message_ids of all."""
        # `super()` alone fails: `dataclass(slots=True)` makes another class than the one written here.
        return super(BatchContext, self).labels | {"message_ids": [each.id for each in self.messages]}

    def fail(self, message: Message[Any], error: Exception) -> None:
        """Have one message fail as if a handler of it alone had raised the error; the others are not affected.

        Emits with this message as their cause are not written. If the handler itself raises, all messages fail; those
        that have failed already keep their own errors.

        Args:
            message: one of the batch.
            error: any exception: a `Reject` makes it a dead letter at once, a `RetryLater` puts it off.

        Raises:
            InvalidValue: the message is not one of this batch, or the error is no exception.
        """
        if not isinstance(error, Exception):
            raise InvalidValue(f"context.fail(message, error) needs an exception, not {error!r}.")
        self.failed[self._cause(message).id] = error

    def answer(self, message: Message[Any], value: object) -> None:
        """Set the answer to one message of the batch, if that is a request; the default is None.

        Args:
            message: one of the batch.
            value: anything that has a JSON form; taken as it is now.

        Raises:
            InvalidValue: the message is not one of this batch, or the value cannot be stored.
        """
        self.answers[self._cause(message).id] = decode(encode(value))

    def _check_room(self, draft: Draft, size: int) -> None:
        # The emits of one message are written with it; the emits of the whole call are bounded too.
        siblings = [each for each in self.emitted if each.parent_id == draft.parent_id]
        own = sum(len(each.json) for each in (*siblings, draft))
        if own > MAX_EMITTED_BYTES or size > _CALLS * MAX_EMITTED_BYTES or len(self.emitted) >= MAX_EMITS:
            super(BatchContext, self)._check_room(draft, own if own > MAX_EMITTED_BYTES else size)

    @property
    def kept_waits(self) -> None:
        """None: it cannot be suspended."""

    def _opened_steps(self) -> Steps:
        raise DeclarationError(
            f"{self.handler} handles batches, and a step or a transaction belongs to one message: leave batch=… "
            "out, or emit a message for each and have a handler of it take the steps."
        )

    def _text_keeper(self) -> TextKeeper | None:
        raise DeclarationError(
            f"{self.handler} handles batches, and a text belongs to one message: leave batch=… out, or emit a message "
            "for each and have a handler of it write the text."
        )

    def _cause(self, message: Message[Any] | None) -> Message[Any]:
        if message is None:
            raise InvalidValue(
                "In a batch each emit belongs to one message: context.emit(key, value, cause=message)."
            )
        if all(message.id != each.id for each in self.messages):
            raise InvalidValue(f"Message {message.id} is not one of this batch.")
        return message
