"""Markers for JSON that Python cannot represent, so that one such value never makes an answer undecodable.

PostgreSQL's jsonb keeps numbers of 131,072 digits and thousands of levels. A reader sees the marker; a handler is not
called with one.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import ref

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
    if not _holds_unreadable(value):
        return None
    path = [name]
    while not isinstance(value, Unreadable):
        step, value = next(each for each in children_of(value) if _holds_unreadable(each[1]))
        path.append(step)
    return "".join(path if len(path) <= 12 else [*path[:6], " … ", *path[-3:]]), value


def _holds_unreadable(value: object) -> bool:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Unreadable):
            return True
        if isinstance(each, Mapping):
            waiting.extend(each.values())
        elif isinstance(each, (list, tuple)):
            waiting.extend(each)
    return False


def children_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a mapping or sequence, each with its step of the path."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield f"[{ascii(key)[:60]}]", child
    else:
        for index, child in enumerate(value):
            yield f"[{index}]", child


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
