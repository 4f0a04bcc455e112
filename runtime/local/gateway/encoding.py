"""PostgreSQL's text values as JSON in a Realtime frame, in the form of `to_jsonb`.

A bigint keeps all its digits, a bytea loses its `\\x`, NaN and the infinities become null, and the keys of
an object come in jsonb's order: shorter ones first, then by their bytes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any

_NUMBERS = frozenset({"int2", "int4", "int8", "numeric"})
_FLOATS = frozenset({"float4", "float8"})
_MAX_NUMERIC_DIGITS = 131_072
_NO_NUMBERS = frozenset({"NaN", "Infinity", "-Infinity"})


@dataclass(frozen=True, slots=True)
class TypeName:
    """A type by its catalog name; an array type also has its element type and delimiter."""

    name: str
    element: str | None = None
    delimiter: str = ","


def json_value(text: str | None, kind: TypeName) -> str:
    """Return one value as JSON text.

    Args:
        text: the value as PostgreSQL prints it with DateStyle ISO in UTC; None is NULL.
        kind: its type.
    """
    if text is None:
        return "null"
    if kind.element is not None:
        return _array(text, TypeName(kind.element), kind.delimiter)
    name = kind.name
    if name in _NUMBERS:
        return "null" if text in _NO_NUMBERS else text
    if name in _FLOATS:
        return "null" if text in _NO_NUMBERS else format(Decimal(text), "f")
    convert = _BY_TYPE.get(name)
    return convert(text) if convert is not None else quoted(text)


def quoted(text: str) -> str:
    """Return a JSON string as PostgreSQL writes one: only quotes, backslashes and control characters are escaped."""
    return encode_basestring(text)


def json_object(members: Mapping[str, str]) -> str:
    """Return an object in jsonb's order and spacing; the values are JSON text already."""
    names = sorted(members, key=lambda name: (len(name.encode()), name.encode()))
    return "{" + ", ".join(f"{quoted(name)}: {members[name]}" for name in names) + "}"


def jsonb_text(value: Any) -> str:
    """Return a value parsed from JSON, with numbers as Decimal, as jsonb prints it."""
    if isinstance(value, dict):
        return json_object({name: jsonb_text(member) for name, member in value.items()})
    if isinstance(value, list):
        return _list(jsonb_text(member) for member in value)
    if isinstance(value, Decimal):
        return format(value, "f")
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def _json(text: str) -> str:
    try:
        return jsonb_text(json.loads(text, parse_float=_number, parse_int=_number))
    except (ValueError, RecursionError):
        # jsonb would refuse it, or it nests too deeply for Python: the text is JSON as it is.
        return text


def _number(digits: str) -> Decimal:
    number = Decimal(digits)
    if abs(number.adjusted()) > _MAX_NUMERIC_DIGITS:
        raise ValueError("a number that no numeric can hold")
    return number


def _timestamp(text: str) -> str:
    return quoted(text.replace(" ", "T", 1))


def _timestamptz(text: str) -> str:
    # With the session in UTC the offset is always printed as +00; the infinities carry none.
    if text.endswith("+00"):
        text += ":00"
    return _timestamp(text)


_BY_TYPE: dict[str, Callable[[str], str]] = {
    "bool": lambda text: "true" if text == "t" else "false",
    "jsonb": lambda text: text,
    "json": _json,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "bytea": lambda text: quoted(text.removeprefix("\\x")),
    # The server casts to the bare type, which is one character or bit long.
    "bpchar": lambda text: quoted(text[:1]),
    "bit": lambda text: quoted(text[:1]),
}


def _array(text: str, element: TypeName, delimiter: str) -> str:
    # "[2:3]={1,2}" is an array that does not begin at 1; JSON has no such arrays.
    if text.startswith("["):
        text = text.partition("=")[2]
    parsed = parse_array(text, delimiter)

    def members(level: list[Any]) -> str:
        return _list(members(item) if isinstance(item, list) else json_value(item, element) for item in level)

    return members(parsed)


def _list(members: Iterable[str]) -> str:
    return "[" + ", ".join(members) + "]"


def parse_array(text: str, delimiter: str = ",") -> list[Any]:
    """Return an array literal as nested lists of strings and Nones.

    Raises:
        ValueError: not an array literal.
    """
    characters = iter(text)
    if next(characters, "") != "{":
        raise ValueError(f"not an array: {text[:40]!r}")
    return _parse_level(characters, delimiter)


def _parse_level(characters: Iterator[str], delimiter: str) -> list[Any]:
    items: list[Any] = []
    word: list[str] = []
    was_quoted = was_list = False
    for character in characters:
        if character == "{":
            items.append(_parse_level(characters, delimiter))
            was_list = True
        elif character == '"':
            was_quoted = True
            word.extend(_quoted_run(characters))
        elif character == "\\":
            word.append(next(characters, ""))
        elif character in {delimiter, "}"}:
            if not was_list and (word or was_quoted):
                found = "".join(word)
                items.append(None if not was_quoted and found.upper() == "NULL" else found)
            word, was_quoted, was_list = [], False, False
            if character == "}":
                return items
        else:
            word.append(character)
    raise ValueError("an array without its end")


def _quoted_run(characters: Iterator[str]) -> Iterator[str]:
    for character in characters:
        if character == '"':
            return
        yield next(characters, "") if character == "\\" else character
