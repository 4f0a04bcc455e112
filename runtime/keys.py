"""Keys and patterns, and which key matches which pattern.

A key is a dotted name such as `task.output`: 1 to 8 segments of letters, digits, `_`, `:` and `-`, at most
255 characters. A pattern is a key in which a segment may be `*` (exactly one segment) and the last may be `>`
(one or more). The database holds the same rule; property tests compare the two.
"""

import re
from functools import lru_cache
from itertools import product
from typing import TypeGuard

from runtime.errors import InvalidKey

MAX_SEGMENTS = 8
MAX_CHARACTERS = 255

_KEY = re.compile(r"[A-Za-z0-9_:-]+(?:\.[A-Za-z0-9_:-]+)*")
_PATTERN = re.compile(r"(?:(?:[A-Za-z0-9_:-]+|\*)\.)*(?:[A-Za-z0-9_:-]+|\*|>)")

_KEY_LOOKS_LIKE = (
    f"A key is 1 to {MAX_SEGMENTS} segments joined by dots, each of letters A-Z a-z, digits, '_', ':' "
    f"and '-', at most {MAX_CHARACTERS} characters in all: 'task.output'."
)
_PATTERN_LOOKS_LIKE = (
    f"A pattern is a key of at most {MAX_SEGMENTS} segments in which a segment may be '*' (one segment) and "
    "the last may be '>' (one or more): 'task.*', 'task.>', '>'."
)


def check_key(key: str) -> str:
    """Return the key unchanged, if it is one.

    Raises:
        InvalidKey: it is not; the message says what a key looks like.
    """
    if not _fits(key, _KEY):
        raise InvalidKey(f"{_quoted(key)} is not a key. {_KEY_LOOKS_LIKE}")
    return key


def check_pattern(pattern: str) -> str:
    """Return the pattern unchanged, if it is one. Every key is a pattern that matches only itself.

    Raises:
        InvalidKey: it is not; the message says what a pattern looks like.
    """
    if not _fits(pattern, _PATTERN):
        raise InvalidKey(f"{_quoted(pattern)} is not a pattern. {_PATTERN_LOOKS_LIKE}")
    return pattern


def is_key(name: object) -> TypeGuard[str]:
    """Whether a name is a key."""
    return _fits(name, _KEY)


def is_exact(pattern: str) -> bool:
    """Whether the pattern has no wildcard, so that it matches one key only: itself."""
    return "*" not in pattern and ">" not in pattern


def matches(pattern: str, key: str) -> bool:
    """Whether the pattern matches the key. Both are assumed to be valid."""
    wanted, segments = pattern.split("."), key.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(segments) <= len(wanted):
            return False
    elif len(segments) != len(wanted):
        return False
    return all(want in ("*", segment) for want, segment in zip(wanted, segments, strict=False))


def overlap(one: str, other: str) -> bool:
    """Whether there is a key that both patterns match."""
    ours, theirs = one.split("."), other.split(".")
    for left, right in zip(ours, theirs, strict=False):
        if ">" in (left, right):
            return True
        if left != right and "*" not in (left, right):
            return False
    return len(ours) == len(theirs)


def candidates(key: str) -> list[str]:
    """Return every pattern that matches the key: 2^(segments+1) - 1 of them, the key itself first.

    Looking these up in an index finds the subscriptions of a key without trying each subscription's pattern.
    """
    segments = key.split(".")
    found: list[str] = []
    for length in range(len(segments), -1, -1):
        for choice in product(*((segment, "*") for segment in segments[:length])):
            found.append(".".join(choice if length == len(segments) else (*choice, ">")))
    return found


def _fits(name: object, grammar: re.Pattern[str]) -> bool:
    """Whether the name follows the grammar within both limits."""
    return isinstance(name, str) and len(name) <= MAX_CHARACTERS and _follows(name, grammar)


# Most programs write under few keys, each of them many times.
@lru_cache(maxsize=1024)
def _follows(name: str, grammar: re.Pattern[str]) -> bool:
    return name.count(".") < MAX_SEGMENTS and grammar.fullmatch(name) is not None


def _quoted(name: object) -> str:
    """Return the name for an error: escaped and shortened."""
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:77]}…"
