"""Checks of the arguments of SQL functions, made before any request."""

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from operator import index
from typing import Any, Final, SupportsIndex

from runtime.errors import InvalidValue
from runtime.keys import check_pattern
from runtime.store.functions import FUNCTIONS, MOST, REQUIRED

# As the methods of streams and contexts call them.
_CALLED: Final = {
    "max": "limit", "max_attempts": "attempts", "since_seconds": "seconds", "until_seconds": "until",
}  # fmt: skip
_LARGEST: Final = {"integer": 2**31 - 1, "bigint": 2**63 - 1}
_COUNTS: Final = frozenset({"max", "look"})


def checked(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a function that are given, each as its type is sent.

    Args:
        function: a name in `FUNCTIONS`.
        arguments: by name. None stands for the default.

    Returns:
        Times with a zone, which is the local one where they had none; whole numbers as plain ones, and several of them
        as a list.

    Raises:
        InvalidKey: a pattern is none.
        InvalidValue: another argument is not of its type, or out of its range; the message names it.
    """
    kinds, required = FUNCTIONS[function], REQUIRED.get(function, ())
    return {
        name: _check(kinds[name], name, value, MOST.get((function, name)))
        for name, value in arguments.items()
        if value is not None or name in required
    }


def check_number(name: str, value: object) -> int:
    """Return a whole number of any size, such as NumPy's, as a plain one.

    Raises:
        InvalidValue: it is none.
    """
    if not isinstance(value, bool) and isinstance(value, SupportsIndex):
        return index(value)
    raise _wrong(name, "a whole number", value)


def _check(kind: str, name: str, value: object, most: int | None) -> Any:
    if (check := _CHECKS.get(kind)) is not None:
        return check(name, value)
    if kind not in _LARGEST:
        return value
    number = check_number(name, value)
    least, most = 1 if name in _COUNTS else -_LARGEST[kind], most or _LARGEST[kind]
    if least <= number <= most:
        return number
    raise _wrong(name, f"a whole number from {least:,} to {most:,}", value)


def _several(name: str, value: object) -> list[int]:
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return [_check("bigint", name, each, None) for each in value]
    raise _wrong(name, "a list of whole numbers", value)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise _wrong(name, "a number of seconds, 0 or more", value)


def _moment(name: str, value: object) -> datetime:
    if not isinstance(value, datetime):
        raise _wrong(name, "a datetime, such as datetime.now(UTC) - timedelta(hours=1)", value)
    if value.tzinfo is not None:
        return value
    try:
        return value.astimezone()
    except (ValueError, OverflowError):
        # The local time of the first or the last day that Python knows may lie outside of its years.
        return value.replace(tzinfo=UTC)


def _truth(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong(name, "True or False", value)


def _text(name: str, value: object) -> str:
    if name == "pattern":
        return check_pattern(value)  # type: ignore[arg-type]
    if not isinstance(value, str):
        raise _wrong(name, "a text", value)
    if "\0" in value or not (value.isascii() or _is_unicode(value)):
        raise InvalidValue(
            f"{name} has a NUL character or half of a surrogate pair, which no text in PostgreSQL has."
        )
    return value


def _texts(name: str, value: object) -> list[str]:
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return [_text(name, each) for each in value]
    raise _wrong(name, "a list of texts", value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(name: str, what: str, value: object) -> InvalidValue:
    given = (
        f"{value!r:.100}"
        if isinstance(value, (int, float, str)) and _is_short(value)
        else type(value).__name__
    )
    return InvalidValue(f"{_CALLED.get(name, name)} must be {what}, not {given}.")


def _is_short(value: object) -> bool:
    # Python writes no number of more than 4,300 digits.
    return not isinstance(value, int) or value.bit_length() < 1000


_CHECKS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    "double precision": _seconds,
    "timestamptz": _moment,
    "boolean": _truth,
    "text": _text,
    "text[]": _texts,
    "bigint[]": _several,
}
