"""Markers for JSON that Python cannot represent, so that one such value never makes an answer undecodable.

PostgreSQL's jsonb keeps numbers of 131,072 digits and thousands of levels. A reader sees the marker; a handler is not
called with one.
"""

import json
import math
import re
from types import MappingProxyType
from typing import Any
from weakref import ref

from runtime.encoding.parts import keyed_items_of
from runtime.tracebacks import name_of

MAX_READ_DEPTH = 200
"""Deeper levels are not read: the quick parser stops there, and so do other consumers of the value."""

# The largest float has 309 digits. A run of so many digits shows in a sample of every thirtieth character; a search of
# the whole text would take three times as long as the parsing itself.
_DIGITS = 309
_STRIDE = 30
_RUN, _RUN_OF_BYTES = re.compile("[0-9]{309}"), re.compile(b"[0-9]{309}")
_SAMPLED_RUN, _SAMPLED_RUN_OF_BYTES = re.compile("[0-9]{10}"), re.compile(b"[0-9]{10}")
_TEXTS_AND_BRACKETS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
# Marks a cut: JSON has no such number, so no text holds it otherwise.
_CUT = "-Infinity"
# Python prints whole numbers of up to 4300 digits.
_LARGE = 10**60

LIVING: "dict[int, ref[Unreadable]]" = {}
"""The markers that exist in this process; while it is empty, no search for markers is needed."""


class Unreadable(str):
    """Replaces a part of a message that Python cannot represent; a string, so that it can be shown anywhere.

    Its text describes the part: `<unreadable: a number of 131,072 digits>`.
    """

    def __new__(cls, text: str) -> "Unreadable":
        """Make a marker and register it as long as it exists."""
        marker = super().__new__(cls, text)
        name = id(marker)
        LIVING[name] = ref(marker, lambda _: LIVING.pop(name, None))
        return marker

    def __repr__(self) -> str:
        return str(self)

    @classmethod
    def because(cls, what: str) -> "Unreadable":
        """Return a marker with this description."""
        return cls(f"<unreadable: {what}>")

    @property
    def what(self) -> str:
        """The description of the unreadable part."""
        return self.removeprefix("<unreadable: ").removesuffix(">")


def find_unreadable(name: str, value: object) -> tuple[str, Unreadable] | None:
    """Return the path of the first marker in plain JSON data, and the marker; None if there is none.

    Args:
        name: the first step of the path.
        value: the data.
    """
    # A place is a key or index and the place around it: a text for each part would cost more than the search.
    waiting: list[tuple[Any, Any]] = [(None, value)]
    # The containers that were looked into: a value may hold itself, or one part often. They are kept, since another
    # object may have the id of one that is gone.
    seen: dict[int, object] = {}
    while waiting:
        place, each = waiting.pop()
        if isinstance(each, Unreadable):
            return f"{name}{_path(place)}", each
        if not issubclass(type(each), (dict, list, tuple, MappingProxyType)) or id(each) in seen:
            continue
        seen[id(each)] = each
        waiting.extend([((key, place), part) for key, part in keyed_items_of(each)][::-1])
    return None


def _path(place: Any) -> str:
    """Return the steps to a place; of a deep one the first and the last."""
    steps: list[str] = []
    while place is not None:
        key, place = place
        steps.append(step(key))
    steps.reverse()
    return "".join(steps if len(steps) < 12 else [*steps[:5], " … ", *steps[-3:]])


def step(key: object) -> str:
    """Return the step of a path to what has this key or index."""
    return f"[{shown(key)}]"


def shown(key: object) -> str:
    """Return a key as it is written in code; of a class of its own, which may print itself in any way, the class."""
    kind = type(key)
    if kind is str or (kind in (int, float, bool, type(None)) and abs(key or 0) < _LARGE):  # type: ignore[arg-type]
        return ascii(key)[:60]
    return f"of the type {name_of(kind)}"


def may_overflow(text: str | bytes) -> bool:
    """Whether the text may hold a number too large for a float, which the quick parser reads as infinite."""
    if len(text) < _DIGITS:
        return False
    if isinstance(text, str):
        return _SAMPLED_RUN.search(text[::_STRIDE]) is not None and _RUN.search(text) is not None
    return (
        _SAMPLED_RUN_OF_BYTES.search(text[::_STRIDE]) is not None and _RUN_OF_BYTES.search(text) is not None
    )


def read_json(text: str | bytes) -> Any:
    """Return the data of any JSON text, with a marker in place of each part that Python cannot represent.

    Raises:
        ValueError: the text is no JSON.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return json.loads(_cut(data), parse_int=_whole, parse_float=_float, parse_constant=_constant)


def _cut(data: bytes) -> bytes:
    """Return the JSON text with a mark in place of each part that is nested too deep."""
    if data.count(b"[") + data.count(b"{") <= MAX_READ_DEPTH:
        return data
    parts: list[bytes] = []
    kept_to = depth = begun_at = 0
    for token in _TEXTS_AND_BRACKETS.finditer(data):
        bracket = data[token.start()]
        if bracket in b"[{":
            depth += 1
            if depth == MAX_READ_DEPTH + 1:
                begun_at = token.start()
        elif bracket in b"]}":
            if depth == MAX_READ_DEPTH + 1:
                parts += data[kept_to:begun_at], _CUT.encode()
                kept_to = token.end()
            depth -= 1
    return b"".join((*parts, data[kept_to:]))


def _whole(digits: str) -> int | Unreadable:
    try:
        return int(digits)
    except ValueError:
        # Python reads whole numbers of up to 4300 digits.
        return Unreadable.because(f"a number of {len(digits.lstrip('-')):,} digits")


def _float(text: str) -> float | Unreadable:
    number = float(text)
    if math.isinf(number):
        return Unreadable.because("a number with a fraction, larger than any float")
    return number


def _constant(name: str) -> Unreadable:
    if name != _CUT:
        raise ValueError(f"{name} is no JSON")
    return Unreadable.because(f"nested more than {MAX_READ_DEPTH} levels deep")
