"""The parts of a value, as the encoder writes them.

A class may say anything about its instances: its `__iter__` may never end, its `__len__` may lie. What the encoder
takes from the storage of a list, tuple or dict is taken from there here too; what it can only iterate is read up to a
bound. An iterator is refused: nobody knows whether it ends, and the encoder would read it to its end.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Iterable
from enum import Enum
from itertools import islice
from threading import local
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

_Opener = Callable[[Any], Collection[Any]]

MAX_PARTS: Final = 8 * 1024 * 1024
"""More parts make more than 16 MB of JSON, in which each takes two characters at least."""

_MAX_KNOWN: Final = 1000
_WHOLE: Final = slice(None)


class Endless(ValueError):
    """A part is an iterator or never stops naming parts; the text continues a sentence about that part."""


class _Met(local):
    """Whether a class with code of its own was met, in this thread."""

    has_code = False


met: Final = _Met()


def items_of(value: Any) -> Iterable[Any]:
    """Return the elements of a list, tuple, set or deque, as the encoder takes them."""
    kind = type(value)
    if kind in _PLAIN:
        return value  # type: ignore[no-any-return]
    if issubclass(kind, list):
        return list.__iter__(value)
    if issubclass(kind, tuple):
        return tuple.__iter__(value)
    return islice(value, MAX_PARTS)


def keyed_items_of(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return the items of a mapping, or the elements of a list, tuple, set or deque with their indexes."""
    kind = type(value)
    if issubclass(kind, dict):
        return dict.items(value)
    return value.items() if kind is MappingProxyType else enumerate(items_of(value))


def parts_of(value: Any) -> Collection[Any]:
    """Return what a container holds; nothing if it is none, or writes its parts in its own way.

    Raises:
        Endless: it is an iterator, has one for a key, or holds more than can be written.
    """
    kind = type(value)
    opener = openers.get(kind)
    if opener is None:
        opener = _opener_of(kind)
        if len(openers) < _MAX_KNOWN:
            openers[kind] = opener
            if opener is _nothing:
                LEAVES.add(kind)
    return opener(value)


def _opener_of(kind: type) -> _Opener:
    """Return what opens the instances of a class."""
    if issubclass(kind, dict):
        return _values
    if issubclass(kind, list):
        return list.copy
    if issubclass(kind, tuple):
        return _items_of_tuple
    if kind in _PLAIN:
        return _itself
    if issubclass(kind, (set, frozenset, deque)):
        return _read
    if dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel):
        return _opener_of_fields(kind)
    if issubclass(kind, Enum):
        return _nothing if are_leaves(type(each.value) for each in kind) else _value_of_member
    # The encoder reads whatever has this method to its end.
    return _refuse if hasattr(kind, "__next__") else _nothing


def _opener_of_fields(kind: type) -> _Opener:
    names, is_all = _written_fields(kind)
    opener: _Opener
    if is_all and issubclass(kind, BaseModel):
        opener = _opener_of_model(names, kind.model_config.get("extra") == "allow")
    else:
        opener = (lambda value: [getattr(value, name, None) for name in names]) if names else _nothing
    if not _has_code(getattr(kind, "__pydantic_core_schema__", None)):
        return opener

    def opener_with_code(value: Any) -> Collection[Any]:
        met.has_code = True
        return opener(value)

    return opener_with_code


def _opener_of_model(names: list[str], takes_extra: bool) -> _Opener:
    """Return what opens a model whose fields are all written as they are."""
    count = len(names)

    def opener(value: Any) -> Collection[Any]:
        fields = value.__dict__
        # A cached property is kept there too, and is not written.
        parts = fields.values() if len(fields) == count else [fields.get(name) for name in names]
        return [*parts, value.__pydantic_extra__] if takes_extra else parts

    return opener


def _values(value: Any) -> Collection[Any]:
    if not _are_texts(map(type, dict.__iter__(value))):
        for key in dict.__iter__(value):
            if type(key) not in LEAVES:
                _check_key(key)
    return dict.values(value)


def _check_key(key: Any) -> None:
    kind = type(key)
    if hasattr(kind, "__next__"):
        raise Endless("has an iterator for a key")
    if issubclass(kind, tuple):
        for part in tuple.__iter__(key):
            _check_key(part)
    elif issubclass(kind, Enum):
        _check_key(key.value)


def _items_of_tuple(value: Any) -> Collection[Any]:
    return tuple.__getitem__(value, _WHOLE)


def _read(value: Any) -> Collection[Any]:
    items = list(islice(value, MAX_PARTS + 1))
    if len(items) > MAX_PARTS:
        raise Endless("has more elements than can be stored, or never stops naming them; send a list")
    return items


def _itself(value: Any) -> Collection[Any]:
    return value  # type: ignore[no-any-return]


def _value_of_member(value: Any) -> Collection[Any]:
    return (value.value,)


def _nothing(_: Any) -> Collection[Any]:
    return ()


def _refuse(value: Any) -> Collection[Any]:
    raise Endless(
        "is an iterator, which can be read only once and may never end; send its items: list(…), or as many as there "
        "should be: list(itertools.islice(…, 100))"
    )


def _written_fields(kind: Any) -> tuple[list[str], bool]:
    """Return the fields of a model or dataclass that are written as they are, and whether these are all."""
    names, known = (
        (list(kind.model_fields), kind.model_fields)
        if issubclass(kind, BaseModel)
        else ([each.name for each in dataclasses.fields(kind)], getattr(kind, "__pydantic_fields__", {}))
    )
    custom = getattr(kind, "__pydantic_decorators__", None)
    if custom is not None and custom.model_serializers:
        return [], False
    customised = (
        {name for each in custom.field_serializers.values() for name in each.info.fields} if custom else set()
    )
    plain = [name for name in names if not customised & {name, "*"} and _is_plain(known.get(name))]
    return plain, len(plain) == len(names)


def _is_plain(field: Any) -> bool:
    """Whether a field is written, and as pydantic writes its type."""
    return field is None or not (
        field.exclude
        or getattr(field, "exclude_if", None)
        or any("Serializer" in type(each).__name__ for each in field.metadata)
    )


def _has_code(schema: Any) -> bool:
    """Whether computed fields or serializers decide what is written, none of which is for JSON alone."""
    found = False
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            written = each.get("serialization")
            if isinstance(written, dict) and "json" in str(written.get("when_used")):
                return False
            found |= bool(each.get("computed_fields")) or (
                isinstance(written, dict) and str(written.get("type")).startswith("function")
            )
            waiting += each.values()
        elif isinstance(each, (list, tuple)):
            waiting += each
    return found


_PLAIN: Final = frozenset({list, tuple, set, frozenset, deque})

openers: Final[dict[type, _Opener]] = {dict: _values, list: _itself, tuple: _itself}

# The classes whose instances hold nothing; others join them as they are met.
LEAVES: Final[set[type]] = {str, int, float, bool, type(None)}
are_leaves: Final = LEAVES.issuperset
_are_texts: Final = frozenset({str}).issuperset
