"""What is said but not stored? Small messages for whoever listens at that moment: tokens as a model writes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar
from uuid import uuid4

from runtime.encoding.json import encode
from runtime.errors import InvalidKey
from runtime.keys import check_key, is_exact

T = TypeVar("T")

EVENT = "said"
TOPIC = "runtime:said"
"""The private Realtime topic of all that is said; what is said under one key goes to one of its own as well."""

SendBroadcast = Callable[[str, str], None]
"""Takes the key and the JSON of one said message; from any thread, it returns at once."""


@dataclass(frozen=True, slots=True)
class Broadcast(Generic[T]):
    """A message that was said and not stored: it has no id, and who did not listen has missed it.

    Attributes:
        key: the dotted name it was said under.
        value: what was said; plain JSON data.
        sayer: who said it: another one for each attempt of a handler, and for each stream of a script.
        number: counted from 1 by each sayer under each key; where one is left out, something was lost.
        agent: the agent whose handler said it.
        message_id: the message that was being handled.
        correlation_id: what it belongs to.
    """

    key: str
    # Not in the repr, as with a message's: values may be private.
    value: T = field(repr=False)
    sayer: str
    number: int
    agent: str | None = None
    message_id: int | None = None
    correlation_id: str | None = None

    @classmethod
    def all_from_wire(cls, payload: object) -> "list[Broadcast[Any]]":
        """Return what a broadcast or a notification carries; what is no said message is left out."""
        said = payload.get("said") if isinstance(payload, Mapping) else None
        return [each for row in (said if isinstance(said, list) else ()) if (each := _from_wire(row))]


class BroadcastSequence:
    """One sayer: it numbers what it says under each key.

    Args:
        speak: carries it away.
        agent: whose handler speaks.
        message_id: the message that is being handled.
        correlation_id: what it belongs to.
    """

    def __init__(
        self,
        speak: SendBroadcast,
        *,
        agent: str | None = None,
        message_id: int | None = None,
        correlation_id: str | None = None,
    ) -> None:
        self._speak = speak
        about = {
            "sayer": uuid4().hex, "agent": agent, "message_id": message_id, "correlation_id": correlation_id,
        }  # fmt: skip
        self._tail = encode({name: given for name, given in about.items() if given is not None})[1:]
        self._numbers: dict[str, count[int]] = {}

    def say(self, key: str, value: object) -> None:
        """Say one thing, as it is now.

        Raises:
            InvalidKey: `key` is not a key.
            InvalidValue: the value has no JSON form, or is too large to be said.
        """
        number = next(self._numbers.setdefault(check_key(key), count(1)))
        self._speak(key, f'{{"key":"{key}","number":{number},"value":{encode(value)},{self._tail}')


def topic_of(pattern: str) -> str:
    """Return the Realtime topic to listen to for what is said under keys that match the pattern."""
    return f"{TOPIC}:{pattern}" if is_exact(pattern) else TOPIC


def _from_wire(row: object) -> Broadcast[Any] | None:
    if not isinstance(row, Mapping) or "value" not in row:
        return None
    key, sayer, number = row.get("key"), row.get("sayer"), row.get("number")
    if not isinstance(sayer, str) or not isinstance(number, int) or not isinstance(key, str):
        return None
    try:
        check_key(key)
    except InvalidKey:
        return None
    agent, message_id, correlation_id = (row.get(name) for name in ("agent", "message_id", "correlation_id"))
    return Broadcast(
        key, row["value"], sayer, number,
        agent if isinstance(agent, str) else None,
        message_id if isinstance(message_id, int) else None,
        correlation_id if isinstance(correlation_id, str) else None,
    )  # fmt: skip
