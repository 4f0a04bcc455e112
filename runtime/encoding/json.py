"""Values as JSON text, and where a value's fault is that has none.

Values are checked before they leave the process: one that the database cannot take would fail the results of other
handlers in the same exchange.
"""

import dataclasses
import inspect
import math
import re
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, cast

from pydantic import BaseModel, TypeAdapter
from pydantic_core import from_json, to_json, to_jsonable_python

from runtime.encoding.parts import Endless, keyed_items_of
from runtime.encoding.readback import LossyValue, certain, faithful, jsonable
from runtime.encoding.size import TooLarge, check_size
from runtime.encoding.unreadable import LIVING, find_unreadable, may_overflow, read_json, shown, step
from runtime.errors import InvalidPayload, InvalidValue
from runtime.tracebacks import full_name_of, text_of, without_made_up_names

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 100
_MAX_CHILDREN: Final = 1_000_000

_TEXTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_CURLY_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_ANYTHING: Final[TypeAdapter[Any]] = TypeAdapter(Any)
# Python reads whole numbers of up to 4300 digits.
_LONG_NUMBER = re.compile(rb"[0-9]{4301}")
# An odd number of backslashes before u0000 is a NUL; an even number is text about one.
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

# Searching for a byte given as a number takes a fifth of the time, and most values do not have the byte.
_BACKSLASH, _N, _I = b"\\NI"

# What pydantic says where it adds nothing to the type.
_UNKNOWN_TYPE = "Unable to serialize unknown type"
_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep; flatten it"


class _HoldsUnreadable(ValueError):
    """A marker is in the value: its path, and itself."""


def encode(value: object) -> str:
    """Return the value as compact JSON text that PostgreSQL's jsonb accepts.

    Pydantic models, dataclasses, datetimes, UUIDs, enums, decimals, sets and so on are written as pydantic
    writes them, an instance of a subclass with all its fields. Mapping keys become strings.

    Raises:
        InvalidValue: NaN or Infinity, a NUL character, a lone surrogate, a circular reference, a type without a JSON
            form, a model that would not be read back as it is, two keys with the same text, more than 100 levels or
            more than 16 MB. The message says where, and never repeats the value.
    """
    try:
        data = _checked(value)
    except _HoldsUnreadable as found:
        place, marker = found.args
        raise InvalidValue(
            f"The value cannot be stored: where it was read from, {place} is {marker.what}, which Python cannot "
            "represent."
        ) from None
    except TooLarge:
        raise InvalidValue(
            f"The value takes more than {MAX_BYTES // 2**20} MB in JSON, with each part written as often as "
            "it occurs. Put large data into a file or a bucket and send its address."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the classes in the value are the user's
        raise InvalidValue(_complaint(value, error)) from (error if _is_foreign(error) else None)
    if len(data) > MAX_BYTES:
        raise InvalidValue(
            f"The value takes {len(data) / 2**20:.1f} MB in JSON; at most {MAX_BYTES // 2**20} MB are stored. "
            "Put large data into a file or a bucket and send its address."
        )
    # Each level takes two brackets.
    may_be_deep = len(data) > 2 * MAX_DEPTH and data.count(b"[") + data.count(b"{") > MAX_DEPTH
    if may_be_deep and not _is_shallow(data):
        raise InvalidValue(f"The value cannot be stored: it {_TOO_DEEP}.")
    return data.decode()


def decode(text: str | bytes) -> Any:
    """Return the data of a JSON text. Whole numbers keep all their digits.

    An `Unreadable` replaces any part that Python cannot represent, such as a number of 100,000 digits.

    Raises:
        InvalidPayload: the text is no JSON.
    """
    try:
        data = from_json(text)
    except ValueError:
        return _decode_with_care(text)
    return _decode_with_care(text) if may_overflow(text) else data


def encode_again(data: object) -> str:
    """Return the JSON text of data that was read from the stream: also what a writer could not store by `encode`."""
    return to_json(data).decode()


def legible(value: object) -> str:
    """Return a decoded value as compact JSON text for people: an unreadable part is a marker, never an error."""
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except ValueError:
        return ascii(value)


def _decode_with_care(text: str | bytes) -> Any:
    try:
        return read_json(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"The stored JSON cannot be read: {error}.") from None


def _checked(value: object) -> bytes:
    """Return the value as JSON, or raise the error of a value that has none."""
    if check_size(value, MAX_BYTES):
        _check_results(value)
    # After the check, which refuses what would never end here.
    if LIVING and (found := find_unreadable("value", value)) is not None:
        raise _HoldsUnreadable(*found)
    return _dump(value)


def _check_results(value: object) -> None:
    """Refuse an iterator that a computed field or a serializer returns: to JSON, it would be read to its end."""
    try:
        results = _ANYTHING.dump_python(value, warnings=False)
    except Exception:  # noqa: BLE001 - JSON has other rules, and what fails under them too is told then
        return
    try:
        check_size(results, sys.maxsize)
    except Endless:
        raise LossyValue(
            "has a computed field or a serializer that returns an iterator; let it return a list"
        ) from None
    except TooLarge:
        return


def _dump(value: object) -> bytes:
    """Return the value as JSON, or raise the ValueError of a value that has none."""
    # In two steps: in one step, pydantic writes the NaN of a model as null without an error.
    kind = type(value)
    if kind is dict or kind is list:
        # Plain data is equal to its own JSON form, and nothing of it is lost.
        if (plain := jsonable(value)) != value:
            plain = faithful(value, plain)
    elif kind in certain:
        plain = to_jsonable_python(value)
    else:
        plain = faithful(value, jsonable(value))
    data = to_json(plain)
    if _BACKSLASH in data and b"\\u0000" in data and _ESCAPED_NUL.search(data):
        raise ValueError("a NUL character")
    # Quick signs of NaN, infinity or a number too long to be read again; a string may hold them too.
    if (
        (_N in data and b"NaN" in data)
        or (_I in data and b"Infinity" in data)
        or (len(data) > 4300 and _LONG_NUMBER.search(data))
    ):
        from_json(data, allow_inf_nan=False)
    return data


def _is_shallow(data: bytes) -> bool:
    """Whether the JSON keeps to MAX_DEPTH: each pass removes the innermost level."""
    brackets = _TEXTS.sub(b"", data).translate(_CURLY_TO_SQUARE, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return True
    return False


def _complaint(value: object, error: Exception) -> str:
    """Return a sentence: where the fault is, what it is, and what to do."""
    try:
        return _located(value, error)
    except Exception:  # noqa: BLE001 - a class of the value does not even let itself be looked at
        return f"The value cannot be stored: its own class raised {text_of(error)}."


def _located(value: object, error: Exception) -> str:
    path: list[str] = []
    # They are kept: a property may make a part anew, and the id of one that is gone would be another's.
    ancestors = {id(value): value}
    while (found := _faulty_child(value)) is not None:
        name, value, error = found
        path.append(name)
        if id(value) in ancestors:
            return f"The value cannot be stored: {_place(path)} holds itself (a circular reference)."
        if len(path) > 2 * MAX_DEPTH:
            # Each part could be a new one of a property, without end.
            return f"The value cannot be stored: it {_TOO_DEEP}."
        ancestors[id(value)] = value
    return f"The value cannot be stored: {_place(path)} {_reason(value, error)}."


def _faulty_child(value: object) -> tuple[str, object, Exception] | None:
    """Return the first part of a container that cannot be stored by itself, and why."""
    for name, child in _children(value):
        if (error := _fault(child)) is not None:
            return name, child, error
    return None


def _children(value: Any) -> Iterator[tuple[str, object]]:
    """Yield the parts of a container, each with its step of the path."""
    kind = type(value)
    if issubclass(kind, (dict, list, tuple, set, frozenset, deque)):
        # The limit is for elements that a class of its own names without end.
        for key, part in islice(keyed_items_of(value), _MAX_CHILDREN):
            yield step(key), part
    elif issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind):
        names = (
            kind.model_fields
            if issubclass(kind, BaseModel)
            else [each.name for each in dataclasses.fields(kind)]
        )
        for name in names:
            yield f".{name}", getattr(value, name, None)
        for name, part in (getattr(value, "__pydantic_extra__", None) or {}).items():
            yield f".{name}", part


def _fault(value: object) -> Exception | None:
    """Return why this part cannot be stored by itself, or None if it can."""
    try:
        if check_size(value, MAX_BYTES):
            _check_results(value)
        _dump(value)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the classes in the value are the user's
        return error
    return None


def _is_foreign(error: Exception) -> bool:
    """Whether an error is one of the value's own classes, and not pydantic's or one of this room."""
    return not isinstance(error, (ValueError, TypeError, RecursionError))


def _place(path: list[str]) -> str:
    """Return the path as a reader would write it."""
    return "".join(("value", *path)) if path else "it"


def _reason(value: object, error: Exception) -> str:
    """Say what is wrong with the innermost part, without repeating it."""
    if isinstance(error, (LossyValue, Endless)):
        return str(error)
    if _is_foreign(error):
        return f"cannot be written, since its own class raised {text_of(error)}"
    kind = type(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, a number JSON does not have; send null or a string instead"
    if isinstance(value, str):
        return _wrong_text(value)
    if issubclass(kind, dict):
        for key in dict.__iter__(cast(Any, value)):
            if _fault(key) is not None:
                why = _wrong_text(key) if isinstance(key, str) else "has no JSON form"
                return f"has the key {shown(key)}, which {why}"
    if issubclass(kind, (dict, list, tuple)):
        # Each part could be stored by itself, so together they have too many levels.
        return _TOO_DEEP
    if isinstance(value, bytes):
        return "is bytes that are not UTF-8; send them as base64 text"
    if isinstance(value, int):
        return "is a number with too many digits; send it as a string"
    if inspect.iscoroutine(value):
        value.close()
        return "is a coroutine: await it, and send its result"
    if inspect.isasyncgen(value):
        return "is an async generator: send its items, [each async for each in …]"
    name, why = full_name_of(kind), without_made_up_names(str(error))
    because = "" if why.startswith(_UNKNOWN_TYPE) else f" ({why})"
    return f"is of the type {name}, which has no JSON form{because}; send a pydantic model, a dataclass or plain data"


def _wrong_text(text: str) -> str:
    """Return which of its two possible faults a text has."""
    if "\0" in text:
        return "holds a NUL character, which PostgreSQL cannot store"
    return "holds a lone surrogate, half of a character, which is no Unicode text"
