"""Broadcasts: unstored messages for whoever listens at that moment, such as tokens as a model writes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar
from uuid import uuid4

from runtime.encoding.json import encode
from runtime.errors import InvalidKey
from runtime.keys import check_key, is_exact

T = TypeVar("T")

EVENT = "broadcasts"
TOPIC = "runtime:broadcast"
"""The private Realtime topic of all broadcasts; those under one key go to a topic of its own as well."""

SendBroadcast = Callable[[str, str], None]
"""Takes the key and the JSON of one broadcast, from any thread, and returns at once."""


@dataclass(frozen=True, slots=True)
class Broadcast(Generic[T]):
    """A message that was sent and not stored: it has no id, and a listener that was away has missed it.

    Attributes:
        key: the dotted name it was sent under.
        value: plain JSON data.
        sender: a different one for each attempt of a handler, and for each stream of a script.
        number: counted from 1 by each sender under each key; a gap means a loss.
        agent: the agent whose handler sent it.
        message_id: the message that was being handled.
        correlation_id: what it belongs to.
    """

    key: str
    # Not in the repr, as with a message's: values may be private.
    value: T = field(repr=False)
    sender: str
    number: int
    agent: str | None = None
    message_id: int | None = None
    correlation_id: str | None = None

    @classmethod
    def all_from_wire(cls, payload: object) -> "list[Broadcast[Any]]":
        """Return the broadcasts of one frame or notification; whatever else is in it is left out."""
        rows = payload.get("broadcasts") if isinstance(payload, Mapping) else None
        return [each for row in (rows if isinstance(rows, list) else ()) if (each := _from_wire(row))]


class BroadcastSequence:
    """The broadcasts of one sender, numbered under each key.

    Args:
        send_broadcast: sends one of them.
        agent: the agent whose handler sends them.
        message_id: the message that is being handled.
        correlation_id: what it belongs to.
    """

    def __init__(
        self,
        send_broadcast: SendBroadcast,
        *,
        agent: str | None = None,
        message_id: int | None = None,
        correlation_id: str | None = None,
    ) -> None:
        self._send_broadcast = send_broadcast
        about = {
            "sender": uuid4().hex, "agent": agent, "message_id": message_id, "correlation_id": correlation_id,
        }  # fmt: skip
        self._tail = encode({name: given for name, given in about.items() if given is not None})[1:]
        self._numbers: dict[str, count[int]] = {}

    def send(self, key: str, value: object) -> None:
        """Send a value as it is now.

        Raises:
            InvalidKey: `key` is not a key.
            InvalidValue: the value has no JSON form, or is too large to be broadcast.
        """
        number = next(self._numbers.setdefault(check_key(key), count(1)))
        self._send_broadcast(key, f'{{"key":"{key}","number":{number},"value":{encode(value)},{self._tail}')


def topic_of(pattern: str) -> str:
    """Return the Realtime topic to listen to for the broadcasts under keys that match the pattern."""
    return f"{TOPIC}:{pattern}" if is_exact(pattern) else TOPIC


def text_topic(message: object) -> str:
    """Return the private Realtime topic of the texts of a message. No key has a slash."""
    return f"{TOPIC}/text/{message}"


def is_text_topic(name: str) -> bool:
    """Whether this is the topic of texts, and no key."""
    return "/" in name


def _from_wire(row: object) -> Broadcast[Any] | None:
    if not isinstance(row, Mapping) or "value" not in row:
        return None
    key, sender, number = row.get("key"), row.get("sender"), row.get("number")
    if not isinstance(sender, str) or not isinstance(number, int) or not isinstance(key, str):
        return None
    try:
        check_key(key)
    except InvalidKey:
        return None
    agent, message_id, correlation_id = (row.get(name) for name in ("agent", "message_id", "correlation_id"))
    return Broadcast(
        key, row["value"], sender, number,
        agent if isinstance(agent, str) else None,
        message_id if isinstance(message_id, int) else None,
        correlation_id if isinstance(correlation_id, str) else None,
    )  # fmt: skip
