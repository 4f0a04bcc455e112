"""Request and reply: a request is a message whose headers name a key, and an answer is a message under that key.

Whether enough answers have come, and which one counts, is decided here, without a clock or a store.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from runtime.agent.handler import Handler
from runtime.encoding.json import decode, encode
from runtime.encoding.unreadable import LIVING, find_unreadable
from runtime.errors import AskFailed, NobodyAnswers
from runtime.message import ANSWERS, Answer, Draft, Message

# The header of an answer with the handler's name.
_HANDLER = "handler"


@dataclass(frozen=True, slots=True)
class RequestState:
    """The state of a request in the database.

    Attributes:
        reply_to: the key of its answers.
        listeners: how many subscriptions got it.
        waiting: how many of them have not finished.
        is_handled: whether one of them has succeeded.
        answers: one from each handler, in the order of writing.
        seen: the ids of all that was written as an answer, of whoever.
    """

    request: int
    key: str
    reply_to: str
    listeners: int
    waiting: int
    is_handled: bool
    answers: tuple[Answer, ...]
    seen: tuple[int, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any], key: str) -> "RequestState":
        """Read one row of `stream_answers`."""
        messages = [Message[Any].from_row(each) for each in row["answers"]]
        answers = [_answer(each, row["request"], key) for each in messages]
        return cls(
            row["request"], key, row["reply_to"], row["listeners"], row["waiting"], row["handled"],
            tuple(_one_of_each(answers)), tuple(row["seen"]),
        )  # fmt: skip

    def settled(self, count: int | None) -> tuple[Answer, ...] | None:
        """Return the first `count` answers, or all for None; None while more may come."""
        if count is not None and len(self.answers) >= count:
            return self.answers[:count]
        return self.answers if self.waiting == 0 else None

    def best(self) -> Answer | None:
        """Return the first good answer, or the first bad one when no good one can come any more; None to wait.

        Raises:
            NobodyAnswers: there is no answer, and none can come.
        """
        for answer in self.answers:
            if answer.error is None:
                return answer
        if self.waiting:
            return None
        if self.answers:
            return self.answers[0]
        if self.is_handled:
            # Handled by a handler of a pattern, which returned nothing.
            return Answer(None, None, None, Message(self.request, self.reply_to, None))
        raise NobodyAnswers(
            f"Nobody will answer request {self.request} under {self.key}: {self._why_nobody()}",
            self.key,
            self.request,
        )

    def _why_nobody(self) -> str:
        if self.listeners:
            return (
                "every handler that got it has ended without an answer. It expired, was removed, or was handled by a "
                f"worker of a release without requests; `runtime trace {self.request}` shows which."
            )
        return (
            f'no handler listens to that key. Is it spelled like that in an @agent.on("{self.key}"), and has that '
            "agent run once? `runtime subscriptions` lists what listens."
        )


def _answer(message: Message[Any], request: int, key: str) -> Answer:
    """Return the answer that a message is to a request under this key."""
    handler, reason = message.headers.get(_HANDLER), message.headers.get("failed")
    handler = handler if isinstance(handler, str) else None
    if reason is None and LIVING and (found := find_unreadable("value", message.value)) is not None:
        text = f"message {message.id} is the answer, and its {found[0]} is {found[1].what}, which Python cannot read"
        return Answer(handler, None, AskFailed(key, request, handler, text, "invalid"), message)
    if reason is None:
        return Answer(handler, message.value, None, message)
    said = message.value.get("error") if isinstance(message.value, dict) else None
    return Answer(handler, None, AskFailed(key, request, handler, str(said or reason), str(reason)), message)


def _one_of_each(answers: Iterable[Answer]) -> list[Answer]:
    """Keep one answer of each handler: after a redrive there may be a good one beside its failure."""
    answers = list(answers)
    good = {answer.handler for answer in answers if answer.error is None}
    return [answer for answer in answers if answer.error is None or answer.handler not in good]


def reply_key(asker: UUID) -> str:
    """Return the key of the answers to all requests of one process."""
    return f"{ANSWERS}{asker}"


def asking_headers(
    asker: UUID, reachable_by: Sequence[str], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the headers that make a message a request.

    Args:
        asker: the process, whose topic and channel get the answers.
        reachable_by: the paths on which it listens: realtime, notify.
        given: the user's own headers.
    """
    return {**(given or {}), "reply_to": reply_key(asker), "reachable_by": list(reachable_by)}


def question_key(message: Message[Any], handler: str, key: str, value: object, ordinal: int) -> str:
    """Return the dedup_key by which a later attempt of a handler finds the request of an earlier one.

    Args:
        message: the handled message.
        handler: the handler that asks.
        key: of the request.
        value: of the request.
        ordinal: how often this attempt has asked exactly this before.
    """
    same = json.dumps(decode(encode(value)), sort_keys=True)
    question = f"{handler}\n{key}\n{ordinal}\n{same}"
    return f"ask {message.id} {hashlib.sha256(question.encode()).hexdigest()}"


def answer_draft(message: Message[Any], subscription: int, handler: Handler, result: object) -> Draft | None:
    """Return the answer with a handler's result, if its message is a request; a dedup_key stores it once.

    A handler of a pattern that returns nothing does not answer: it may only keep a log.
    """
    reply_to = message.reply_to
    if reply_to is None or (result is None and message.key not in handler.patterns):
        return None
    if handler.deliver == "each":
        # Every process gets the message, and none has to finish it.
        return None
    return Draft(
        reply_to,
        result,
        agent=handler.agent,
        dedup_key=f"answer {message.id} {subscription}",
        correlation_id=message.correlation,
        parent_id=message.id,
        headers={"answers": message.id, _HANDLER: handler.name},
    )
