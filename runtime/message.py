"""What is a message, and what can be sent?"""

import math
import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, Generic, Self, TypeVar

from runtime.encoding.json import decode as decode
from runtime.encoding.json import encode as encode
from runtime.errors import AskFailed, InvalidValue
from runtime.keys import check_key, is_key

T = TypeVar("T")

MAX_DEDUP_CHARACTERS = 255
# The same limits as the table's, whose constraints have these names.
MAX_CHARACTERS = 255
MAX_HEADERS_BYTES = 64 * 1024
ANSWERS = "answer."
"""What every key that answers are written under begins with."""
_RESERVED = re.compile(r"(tick|answer|failed|ask|webhook) ")
_HUNDRED_YEARS_SECONDS = 100 * 366 * 86_400


class Priority(IntEnum):
    """In which of three classes a message waits; a higher one is taken first."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


PRIORITIES = {int(priority): priority for priority in Priority}


@dataclass(frozen=True, slots=True)
class Message(Generic[T]):
    """A row of `consciousness_stream`, as a handler sees it.

    Attributes:
        id: its number in the stream, rising with the time of writing.
        key: the dotted name it was written under.
        value: what was written; plain JSON data, or what the handler's annotation made of it.
        agent: who wrote it, where the writer said so.
        created_at: when the row was written, by the database's clock.
        attempt: which attempt of this delivery this is, counted from 1.
        correlation_id: shared by all messages that go back to one first message.
        parent_id: the id of the message whose handler wrote this one.
        headers: what travels beside the value.
        priority: the class it waits in.
        dedup_key: under which it is stored once within the dedup retention.
        deliver_at: not before this time.
        expires_at: not after this time.
    """

    id: int
    key: str
    # Not in the repr, which ends up in logs and error reports: values may be private.
    value: T = field(repr=False)
    agent: str | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempt: int = 1
    correlation_id: str | None = None
    parent_id: int | None = None
    headers: dict[str, Any] = field(default_factory=dict, repr=False)
    priority: Priority = Priority.NORMAL
    dedup_key: str | None = None
    deliver_at: datetime | None = None
    expires_at: datetime | None = None

    @property
    def idempotency_key(self) -> str:
        """What names this message and no other: the same in each attempt and each replay.

        The moment of its writing is part of it: ids come again after a failover that lost the last commits, and after a
        reset of the database.
        """
        return f"{self.id}_{(self.created_at - _EPOCH) // _MICROSECOND:x}"

    @property
    def reply_to(self) -> str | None:
        """The key an answer is wanted under, where this is a request; it is one below `answer.`."""
        given = self.headers.get("reply_to")
        # Whoever may ask must not have an agent write under any key in the agent's name.
        return given if isinstance(given, str) and given.startswith(ANSWERS) and is_key(given) else None

    @property
    def correlation(self) -> str:
        """What the messages share that this one causes: its correlation_id, or its id where it is a first one."""
        # A row from before the table had its limits may have a longer one.
        return self.correlation_id[:MAX_CHARACTERS] if self.correlation_id else str(self.id)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], *, attempt: int = 1) -> Self:
        """Return the message a row of the stream holds, given as decoded JSON with times as ISO 8601 text.

        Args:
            row: the columns by name; those the message does not have are left aside.
            attempt: which attempt of its delivery is about to run.
        """
        return cls(
            id=row["id"],
            key=row["key"],
            value=row["value"],
            agent=row.get("agent"),
            created_at=_moment(row.get("created_at")) or datetime.now(UTC),
            attempt=attempt,
            correlation_id=row.get("correlation_id"),
            parent_id=row.get("parent_id"),
            headers=headers if isinstance(headers := row.get("headers"), dict) else {},
            # What a constraint that was dropped has let in is read all the same.
            priority=PRIORITIES.get(row.get("priority") or 0, Priority.NORMAL),
            dedup_key=row.get("dedup_key"),
            deliver_at=_moment(row.get("deliver_at")),
            expires_at=_moment(row.get("expires_at")),
        )


_NOTHING = (None,) * 7
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that is not stored yet: checked when made, and safe from later changes to its value.

    Args:
        key: the key to write it under.
        value: anything `encode` takes.
        agent: who writes it.
        delay: seconds to wait before it is due.
        expires_in: seconds after which nobody wants it any more.
        priority: the class it waits in.
        dedup_key: within the dedup retention one message with this text is stored; 1 to 255 characters.
        correlation_id: what it belongs to.
        parent_id: the message it answers.
        headers: whatever should travel beside the value, up to 64 kB of it.

    Attributes:
        json: the draft as the JSON object `stream_send` takes.

    Raises:
        InvalidKey: `key` is not a key.
        InvalidValue: the value or another field cannot be stored.
    """

    key: str
    value: Any = field(repr=False)
    agent: str | None = field(default=None, kw_only=True)
    delay: float | None = field(default=None, kw_only=True)
    expires_in: float | None = field(default=None, kw_only=True)
    priority: Priority = field(default=Priority.NORMAL, kw_only=True)
    dedup_key: str | None = field(default=None, kw_only=True)
    correlation_id: str | None = field(default=None, kw_only=True)
    parent_id: int | None = field(default=None, kw_only=True)
    headers: Mapping[str, Any] | None = field(default=None, kw_only=True, repr=False)
    json: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # No character of a key has to be escaped.
        head = f'{{"key":"{check_key(self.key)}"'
        if options := self._options():
            text = encode(options)
            if len(text) > MAX_HEADERS_BYTES // 4:
                _check_headers(self.headers)
            head = f"{head},{text[1:-1]}"
        object.__setattr__(self, "json", f'{head},"value":{encode(self.value)}}}')

    def _options(self) -> dict[str, Any] | None:
        """What was given beside the key and the value, checked; None where nothing was."""
        given = (
            self.agent, self.delay, self.expires_in, self.dedup_key, self.correlation_id, self.parent_id, self.headers,
        )  # fmt: skip
        if given == _NOTHING and self.priority is Priority.NORMAL:
            return None
        if self.dedup_key is not None and not 0 < len(self.dedup_key) <= MAX_DEDUP_CHARACTERS:
            size = len(self.dedup_key)
            raise InvalidValue(f"A dedup_key has 1 to {MAX_DEDUP_CHARACTERS} characters, not {size}.")
        for name, text in (("agent", self.agent), ("correlation_id", self.correlation_id)):
            if text is not None and len(text) > MAX_CHARACTERS:
                raise InvalidValue(f"{name} has at most {MAX_CHARACTERS} characters, not {len(text)}.")
        options = {
            "agent": self.agent,
            "delay": _seconds("delay", self.delay),
            "expires_in": _seconds("expires_in", self.expires_in),
            "priority": _priority(self.priority) or None,
            "dedup_key": self.dedup_key,
            "correlation_id": self.correlation_id,
            "parent_id": self.parent_id,
            "headers": dict(self.headers) if self.headers else None,
        }
        return {name: given for name, given in options.items() if given is not None}

    def carrying(self, headers: Mapping[str, str]) -> Self:
        """Return the same draft with more headers, and with its value as it was when the draft was made."""
        fields = self.as_dict()
        fields["headers"] = {**fields.get("headers", {}), **headers}
        draft = copy(self)
        object.__setattr__(draft, "headers", fields["headers"])
        object.__setattr__(draft, "json", encode(fields))
        return draft

    def as_dict(self) -> dict[str, Any]:
        """Return the draft as plain JSON data, only with the fields that were set."""
        fields: dict[str, Any] = decode(self.json)
        return fields


def check_dedup_key(dedup_key: str | None) -> str | None:
    """Return a `dedup_key` of a user's own, if it is none of those that the runtime makes itself.

    Raises:
        InvalidValue: the runtime could mistake the message for a tick, an answer, a request or a webhook.
    """
    if isinstance(dedup_key, str) and _RESERVED.match(dedup_key):
        raise InvalidValue(
            f"The dedup_key {dedup_key[:40]!r} begins as the runtime's own do (tick, answer, failed, ask and webhook, "
            "each with a blank): begin it with another word."
        )
    return dedup_key


@dataclass(frozen=True, slots=True)
class Answer:
    """What one handler made of a request.

    Attributes:
        handler: who answered, `agent.handler`; None where no handler did.
        value: what it returned; None where it failed.
        error: why it failed for good, after its last attempt; None where it did not.
        message: the answer as it stands in the stream.
    """

    handler: str | None
    value: Any = field(repr=False)
    error: AskFailed | None
    message: Message[Any]

    def given(self) -> Any:
        """The value.

        Raises:
            AskFailed: there is none.
        """
        if self.error is not None:
            raise self.error
        return self.value


def _moment(text: str | None) -> datetime | None:
    return None if text is None else moment(text)


def moment(text: str) -> datetime:
    """Return the time a PostgreSQL timestamp in JSON means; outside Python's years, the nearest end of them."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        is_past = text.startswith("-") or text.endswith("BC")
        return (datetime.min if is_past else datetime.max).replace(tzinfo=UTC)


def _check_headers(headers: Mapping[str, Any] | None) -> None:
    """Refuse headers that are too large: they are read with every message, whoever needs them."""
    size = len(encode(dict(headers or {})).encode())
    if size > MAX_HEADERS_BYTES:
        raise InvalidValue(
            f"The headers take {size:,} bytes in JSON; at most {MAX_HEADERS_BYTES:,} are stored. Put large things into "
            "the value."
        )


def _seconds(name: str, seconds: float | None) -> float | None:
    """The seconds unchanged, if a timestamp can be that far away."""
    if seconds is None:
        return None
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise InvalidValue(f"{name} must be a number of seconds, not {seconds!r}.")
    if not 0 <= seconds <= _HUNDRED_YEARS_SECONDS:
        raise InvalidValue(f"{name} must lie between 0 and a hundred years, not at {seconds:g} seconds.")
    return seconds


def _priority(priority: int) -> int:
    """The class's number, if there is such a class."""
    if type(priority) is Priority:
        return priority
    try:
        return int(Priority(priority))
    except ValueError:
        raise InvalidValue(f"A priority is -1, 0 or 1 (low, normal, high), not {priority!r}.") from None
