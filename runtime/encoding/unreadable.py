"""Markers for what JSON can hold and Python cannot, so that one such value never makes an answer undecodable.

PostgreSQL's jsonb keeps numbers of 131,072 digits and thousands of levels. A reader is shown the marker; a handler is
not called with one.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import ref

MAX_READ_DEPTH = 200
"""More levels than this are not read: the quick parser stops there, and so do others that a value is handed to."""

# The largest float has 309 digits. A run of so many shows in every thirtieth character, too; a look at each of them
# would take three times as long as the parsing itself.
_DIGITS = 309
_STRIDE = 30
_RUN, _RUN_OF_BYTES = re.compile("[0-9]{309}"), re.compile(b"[0-9]{309}")
_SAMPLED_RUN, _SAMPLED_RUN_OF_BYTES = re.compile("[0-9]{10}"), re.compile(b"[0-9]{10}")
_TEXTS_AND_BRACKETS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
# JSON has no such number, so that its place in a text is free to mark a cut.
_CUT = "-Infinity"

LIVING: "dict[int, ref[Unreadable]]" = {}
"""The markers that exist in this process; while it is empty, nobody needs to look for any."""


class Unreadable(str):
    """Stands for a part of a message that JSON can hold and Python cannot; a string, so that it can be shown anywhere.

    Its text says what stands there, as in `<unreadable: a number of 131,072 digits>`.
    """

    def __new__(cls, text: str) -> "Unreadable":
        """Make one with this text, and have it looked for as long as it lives."""
        marker = super().__new__(cls, text)
        name = id(marker)
        LIVING[name] = ref(marker, lambda _: LIVING.pop(name, None))
        return marker

    def __repr__(self) -> str:
        return str(self)

    @classmethod
    def because(cls, what: str) -> "Unreadable":
        """Return a marker for what is described like this."""
        return cls(f"<unreadable: {what}>")

    @property
    def what(self) -> str:
        """What stands there."""
        return self.removeprefix("<unreadable: ").removesuffix(">")


def find_unreadable(name: str, value: object) -> tuple[str, Unreadable] | None:
    """Return where in plain JSON data the first marker stands, and the marker; None where there is none.

    Args:
        name: what the whole is called.
        value: the data.
    """
    if not _holds_unreadable(value):
        return None
    path = [name]
    while not isinstance(value, Unreadable):
        step, value = next(each for each in _children(value) if _holds_unreadable(each[1]))
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


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a container, each with its step of the path."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield f"[{ascii(key)[:60]}]", child
    else:
        for index, child in enumerate(value):
            yield f"[{index}]", child


def may_overflow(text: str | bytes) -> bool:
    """Whether the text may hold a number that a float has no room for, which the quick parser reads as infinite."""
    if len(text) < _DIGITS:
        return False
    if isinstance(text, str):
        return _SAMPLED_RUN.search(text[::_STRIDE]) is not None and _RUN.search(text) is not None
    return (
        _SAMPLED_RUN_OF_BYTES.search(text[::_STRIDE]) is not None and _RUN_OF_BYTES.search(text) is not None
    )


def read_json(text: str | bytes) -> Any:
    """Return what any JSON text holds, with a marker in the place of whatever Python cannot hold.

    Raises:
        ValueError: the text is no JSON.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return json.loads(_cut(data), parse_int=_whole, parse_float=_float, parse_constant=_constant)


def _cut(data: bytes) -> bytes:
    """The JSON text with everything that is nested too deep replaced by a mark."""
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
