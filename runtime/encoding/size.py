"""A lower bound of a value's size in JSON, found before it is written.

A value whose parts occur many times takes little memory, and its JSON has no end: `a = []`, `b = [a, a]`, `c = [b, b]`
and so on. Here each part is looked at once, however often it occurs.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import Any, Final

from pydantic import BaseModel

_Opener = Callable[[Any], Collection[Any]]

# A value with so few containers, each with so few parts, is written without a look at its texts.
_FEW_CONTAINERS, _FEW_PARTS = 50, 64
# Nothing that can be written has as many levels.
_DEEPEST: Final = 300
_MAX_KNOWN: Final = 1000


class TooLarge(ValueError):
    """The JSON of a value has more characters than it may have."""


def check_size(value: object, most: int) -> None:
    """Refuse a value whose JSON has more characters than this, as far as that shows without writing it.

    What a model leaves out or writes in its own way does not count. Of a small value no text is counted.

    Args:
        value: any value.
        most: how many characters it may have.

    Raises:
        TooLarge: it has more.
    """
    if type(value) in _leaves or _is_small(value):
        return
    if (_size_of_tree(value, most) or _Shared().size_of(value)) > most:
        raise TooLarge


def _is_small(value: object) -> bool:
    """Whether the value has few parts, each counted as often as it occurs."""
    containers: list[Any] = [value]
    for each in containers:
        opener = _openers.get(type(each)) or _parts_of
        parts = opener(each)
        if len(parts) > _FEW_PARTS:
            return False
        if not _are_leaves(map(type, parts)):
            containers += [part for part in parts if type(part) not in _leaves]
            if len(containers) > _FEW_CONTAINERS:
                return False
    return True


def _size_of_tree(value: object, most: int) -> int | None:
    """Return the size of a value, level by level; None if a level holds one container twice."""
    size = 0
    level, kinds = [value], {type(value)}
    for _ in range(_DEEPEST):
        parts: list[Any] = []
        for kind in kinds:
            alike: list[Any] = level if len(kinds) == 1 else [each for each in level if type(each) is kind]
            parts += chain.from_iterable(map(_openers.get(kind, _parts_of), alike))
            if issubclass(kind, dict):
                size += _size_of_texts(chain.from_iterable(alike))
        kinds = set(map(type, parts))
        size += len(level) + len(parts) + (_size_of_texts(parts) if str in kinds else 0)
        kinds -= _leaves
        if not kinds or size > most:
            return size
        level = [part for part in parts if type(part) in kinds]
        if len(set(map(id, level))) < len(level):
            return None
    # It is refused for its depth when it is written.
    return size


class _Shared:
    """The sizes of containers that occur in several places, each worked out once."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        # The id of a container that is gone would be another's.
        self._kept: list[object] = []

    def size_of(self, value: object, depth: int = 0) -> int:
        """Return the size of a container."""
        known = self._sizes.get(id(value))
        if known is not None:
            return known
        parts = _parts_of(value)
        self._kept += value, parts
        own = (
            1 + len(parts) + (_size_of_texts(value) if isinstance(value, dict) else 0) + _size_of_texts(parts)
        )
        # What holds itself, or is too deep, is refused when it is written.
        self._sizes[id(value)] = own
        if depth < _DEEPEST and not _are_leaves(map(type, parts)):
            own += sum([self.size_of(part, depth + 1) for part in parts if type(part) not in _leaves])
            self._sizes[id(value)] = own
        return own


def _size_of_texts(parts: Iterable[Any]) -> int:
    return sum([len(part) for part in parts if type(part) is str])


def _parts_of(value: Any) -> Collection[Any]:
    """Return what a container holds; nothing if it is none, or writes its parts in its own way."""
    kind = type(value)
    opener = _openers.get(kind)
    if opener is None:
        opener = _opener_of(kind)
        if len(_openers) < _MAX_KNOWN:
            _openers[kind] = opener
            if opener is _nothing:
                _leaves.add(kind)
    return opener(value)


def _opener_of(kind: type) -> _Opener:
    """Return what opens the instances of a class."""
    if issubclass(kind, dict):
        return dict.values
    if issubclass(kind, list):
        return list.copy
    if issubclass(kind, tuple):
        return tuple
    if issubclass(kind, (set, frozenset, deque)):
        return _itself
    names, is_all = _written_fields(kind)
    if is_all and issubclass(kind, BaseModel):
        return _fields
    return (lambda value: [getattr(value, name, None) for name in names]) if names else _nothing


def _itself(value: Any) -> Collection[Any]:
    return value  # type: ignore[no-any-return]


def _fields(value: Any) -> Collection[Any]:
    return value.__dict__.values()  # type: ignore[no-any-return]


def _nothing(_: Any) -> Collection[Any]:
    return ()


def _written_fields(kind: type) -> tuple[list[str], bool]:
    """Return the fields of a model or dataclass that are written as they are, and whether these are all."""
    if dataclasses.is_dataclass(kind):
        names, known = (
            [each.name for each in dataclasses.fields(kind)],
            getattr(kind, "__pydantic_fields__", {}),
        )
    elif issubclass(kind, BaseModel):
        names, known = list(kind.model_fields), kind.model_fields
    else:
        return [], False
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


_openers: Final[dict[type, _Opener]] = {dict: dict.values, list: _itself, tuple: _itself}
# The classes whose instances hold nothing; others join them as they are met.
_leaves: Final[set[type]] = {str, int, float, bool, type(None)}
_are_leaves: Final = _leaves.issuperset
