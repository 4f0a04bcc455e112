"""What does a handler of many messages at once get, and how does it say what became of each?"""

from dataclasses import dataclass, field
from typing import Any

from runtime.agent.context import MAX_EMITS, MAX_EMITTED_BYTES, Context
from runtime.encoding.json import decode, encode
from runtime.errors import InvalidValue
from runtime.message import Draft, Message

# A call of many messages may emit as much as so many calls of one.
_CALLS = 4


@dataclass(frozen=True, slots=True)
class Batching:
    """How many messages one call of a handler gets.

    Attributes:
        size: at most so many.
        within: seconds after the first has come, when those that are there are handed over all the same.
    """

    size: int
    within: float


@dataclass(slots=True)
class BatchContext(Context):
    """What a handler of batches may know and do beside its messages; one per call.

    Attributes:
        message: the first of the messages.
        messages: those the handler was given.
        failed: what went wrong with single ones, by their ids.
        answers: what single ones are answered, where they are requests, by their ids.
    """

    messages: tuple[Message[Any], ...] = ()
    failed: dict[int, Exception] = field(default_factory=dict)
    answers: dict[int, Any] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> dict[str, Any]:
        """What the log records of this call carry: as for one message, of the first, and message_ids of all."""
        # By its name: a dataclass with slots is another class than the one that is written here.
        return super(BatchContext, self).labels | {"message_ids": [each.id for each in self.messages]}

    def fail(self, message: Message[Any], error: Exception) -> None:
        """Have one message fail as if a handler of it alone had raised the error; the others are none the worse.

        What was emitted because of it is not written. Where the handler itself raises, all fail, and those that
        have failed already keep their own errors.

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
        """Say what one message, if it is a request, is answered when it is done; without a word that is None.

        Args:
            message: one of the batch.
            value: anything that has a JSON form; taken as it is now.

        Raises:
            InvalidValue: the message is not one of this batch, or the value cannot be stored.
        """
        self.answers[self._cause(message).id] = decode(encode(value))

    def _check_room(self, draft: Draft, size: int) -> None:
        # Each message's are written with it; all of the call's must not take too long either.
        own = sum(len(each.json) for each in self.emitted if each.parent_id == draft.parent_id) + len(
            draft.json
        )
        if own > MAX_EMITTED_BYTES or size > _CALLS * MAX_EMITTED_BYTES or len(self.emitted) >= MAX_EMITS:
            super(BatchContext, self)._check_room(draft, own if own > MAX_EMITTED_BYTES else size)

    def _cause(self, message: Message[Any] | None) -> Message[Any]:
        if message is None:
            raise InvalidValue(
                "In a batch each emit belongs to one message: context.emit(key, value, cause=message)."
            )
        if all(message.id != each.id for each in self.messages):
            raise InvalidValue(f"Message {message.id} is not one of this batch.")
        return message
