"""Which handlers listen to a key, and whether it is a fault that no handler got a message."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from runtime.agent.approval import REQUESTED
from runtime.dashboard.schemas import Declared
from runtime.keys import matches

# Why a message has no handler: a chain ends with it; it asks people; nobody listens to its key; it was written before
# somebody did.
Silence = Literal["end", "people", "nobody", "early"]

# The keys of answers to requests, and of the ticks of timers that have no key of their own.
_OWN: Final = re.compile(r"answer\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}.*|timer\..*")


def is_own(key: str) -> bool:
    """Whether the runtime itself writes under a key, so that it is not for people to write under."""
    return _OWN.fullmatch(key) is not None


def listeners(key: str, subscriptions: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the subscriptions, as `stream_stats` lists them, whose patterns match a key."""
    return [each for each in subscriptions if any(matches(pattern, key) for pattern in each["patterns"])]


def silence(
    message: Mapping[str, Any], subscriptions: Sequence[Mapping[str, Any]], declared: Mapping[str, Declared]
) -> Silence | None:
    """Return why no handler got a message; None if one did.

    Only a message from outside is written to be handled: what a handler writes may be a result, for people to read.

    Args:
        message: with what became of it, as `handled`.
        subscriptions: from `stream_stats`.
        declared: the handlers of the agents that were named; those that every process runs have no subscription.
    """
    if message["handled"]:
        return None
    key = message["key"]
    if message["parent_id"] is not None or is_own(key):
        return "people" if key == REQUESTED else "end"
    if any(
        each.deliver == "each" and any(matches(pattern, key) for pattern in each.patterns)
        for each in declared.values()
    ):
        return None
    return "early" if listeners(key, subscriptions) else "nobody"
