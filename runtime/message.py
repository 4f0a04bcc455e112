"""Messages as they are stored, drafts of new ones, and answers to requests."""

import math
import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from itertools import islice
from typing import Any, Generic, Self, TypeVar, cast

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
"""The beginning of every key of answers."""
_RESERVED = re.compile(r"(tick|answer|failed|ask|webhook|decision) ")
_HUNDRED_YEARS_SECONDS = 100 * 366 * 86_400


class Priority(IntEnum):
    """The class in which a message waits; a higher one is taken first."""

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
        value: plain JSON data, or an instance of the handler's annotation.
        agent: the writer's name, if it gave one.
        created_at: when the row was written, by the database's clock.
        attempt: which attempt of this delivery this is, counted from 1.
        correlation_id: shared by all messages that go back to one first message.
        parent_id: the id of the message whose handler wrote this one.
        headers: JSON data beside the value.
        priority: the class it waits in.
        dedup_key: stored once within the dedup retention.
        deliver_at: not delivered before this time.
        expires_at: not delivered after this time.
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
        """A text that identifies this message: the same in each attempt and each replay.

        It includes the time of writing: ids are reused after a failover that lost the last commits, and after a reset
        of the database.
        """
        return f"{self.id}_{(self.created_at - _EPOCH) // _MICROSECOND:x}"

    @property
    def reply_to(self) -> str | None:
        """The key for the answer, if this is a request; it begins with `answer.`."""
        given = self.headers.get("reply_to")
        # A sender of requests must not make an agent write under any other key.
        return given if isinstance(given, str) and given.startswith(ANSWERS) and is_key(given) else None

    @property
    def correlation(self) -> str:
        """The correlation_id of the messages that this one causes: its own, or its id if it is a first message."""
        # The row may be older than the table's limit.
        return self.correlation_id[:MAX_CHARACTERS] if self.correlation_id else str(self.id)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], *, attempt: int = 1) -> Self:
        """Return the message of a row of the stream, given as decoded JSON with times as ISO 8601 text.

        Args:
            row: the columns by name; unknown ones are ignored.
            attempt: the attempt of its delivery that is about to run.
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
            # Read any number: somebody may have dropped the column's constraint.
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
        agent: the writer's name.
        delay: seconds until it is due.
        expires_in: seconds after which it is not delivered any more.
        priority: the class it waits in.
        dedup_key: within the dedup retention one message with this text is stored; 1 to 255 characters.
        correlation_id: shared by related messages.
        parent_id: the id of the message that causes it.
        headers: JSON data beside the value, up to 64 kB.

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
        """Return the fields beside the key and the value, checked; None if there are none."""
        given = (
            self.agent, self.delay, self.expires_in, self.dedup_key, self.correlation_id, self.parent_id, self.headers,
        )  # fmt: skip
        if given == _NOTHING and self.priority is Priority.NORMAL:
            return None
        for name, text in (
            ("agent", self.agent), ("correlation_id", self.correlation_id), ("dedup_key", self.dedup_key),
        ):  # fmt: skip
            if text is not None and not isinstance(text, str):
                raise InvalidValue(f"{name} must be a text, not {text!r}.")
        if self.headers is not None and not isinstance(self.headers, Mapping):
            raise InvalidValue(f"headers must be a dict, not {type(self.headers).__name__}.")
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
            "headers": _read_headers(self.headers) if self.headers else None,
        }
        return {name: given for name, given in options.items() if given is not None}

    def carrying(self, headers: Mapping[str, str]) -> Self:
        """Return the same draft with more headers; its value stays as it was when the draft was made."""
        fields = self.as_dict()
        fields["headers"] = {**fields.get("headers", {}), **headers}
        draft = copy(self)
        object.__setattr__(draft, "headers", fields["headers"])
        object.__setattr__(draft, "json", encode(fields))
        return draft

    def as_dict(self) -> dict[str, Any]:
        """Return the draft as plain JSON data, with only the fields that were set."""
        fields: dict[str, Any] = decode(self.json)
        return fields


def check_dedup_key(dedup_key: str | None) -> str | None:
    """Return a user's `dedup_key`, if it does not look like one of the runtime's own.

    Raises:
        InvalidValue: the runtime could mistake the message for a tick, an answer, a request or a webhook.
    """
    if isinstance(dedup_key, str) and _RESERVED.match(dedup_key):
        raise InvalidValue(
            f"The dedup_key {dedup_key[:40]!r} begins like the runtime's own (tick, answer, failed, ask and webhook, "
            "each with a blank): begin it with another word."
        )
    return dedup_key


@dataclass(frozen=True, slots=True)
class Answer:
    """A handler's answer to a request.

    Attributes:
        handler: its name, `agent.handler`; None if no handler answered.
        value: its return value; None if it failed.
        error: the failure of its last attempt; None if it succeeded.
        message: the answer in the stream.
    """

    handler: str | None
    value: Any = field(repr=False)
    error: AskFailed | None
    message: Message[Any]

    def given(self) -> Any:
        """Return the value.

        Raises:
            AskFailed: the handler failed.
        """
        if self.error is not None:
            raise self.error
        return self.value


def _moment(text: str | None) -> datetime | None:
    return None if text is None else moment(text)


def moment(text: str) -> datetime:
    """Return the time of a PostgreSQL timestamp in JSON; outside Python's years, the nearest end of them."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        is_past = text.startswith("-") or text.endswith("BC")
        return (datetime.min if is_past else datetime.max).replace(tzinfo=UTC)


def _read_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of any mapping, of which one that names keys without end is read up to a bound."""
    if issubclass(type(headers), dict):
        return dict(dict.items(cast(dict[str, Any], headers)))
    return dict(islice(headers.items(), MAX_HEADERS_BYTES))


def _check_headers(headers: Mapping[str, Any] | None) -> None:
    """Refuse headers that are too large: every reader of the message gets them."""
    size = len(encode(_read_headers(headers or {})).encode())
    if size > MAX_HEADERS_BYTES:
        raise InvalidValue(
            f"The headers take {size:,} bytes in JSON; at most {MAX_HEADERS_BYTES:,} are stored. Put large data into "
            "the value."
        )


def _seconds(name: str, seconds: float | None) -> float | None:
    """Return the seconds unchanged, if a timestamp can be that far away."""
    if seconds is None:
        return None
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise InvalidValue(f"{name} must be a number of seconds, not {seconds!r}.")
    if not 0 <= seconds <= _HUNDRED_YEARS_SECONDS:
        raise InvalidValue(f"{name} must lie between 0 and a hundred years, not at {seconds:g} seconds.")
    return seconds


def _priority(priority: int) -> int:
    """Return the number of the class, if there is such a class."""
    if type(priority) is Priority:
        return priority
    try:
        return int(Priority(priority))
    except ValueError:
        raise InvalidValue(f"A priority is -1, 0 or 1 (low, normal, high), not {priority!r}.") from None
