"""A lower bound of a value's size in JSON, found before it is written.

A value whose parts occur many times takes little memory, and its JSON has no end: `a = []`, `b = [a, a]`, `c = [b, b]`
and so on. Here each part is looked at once, however often it occurs.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

from runtime.encoding.parts import LEAVES, are_leaves, met, openers, parts_of

# A value with so few containers, each with so few parts, is written without a look at its texts.
_FEW_CONTAINERS, _FEW_PARTS = 50, 64
# Nothing that can be written has as many levels.
_DEEPEST: Final = 300


class TooLarge(ValueError):
    """The JSON of a value has more characters than it may have."""


def check_size(value: object, most: int) -> bool:
    """Refuse a value whose JSON has more characters than this, as far as that shows without writing it.

    What a model leaves out or writes in its own way does not count. Of a small value no text is counted.

    Args:
        value: any value.
        most: how many characters it may have.

    Returns:
        Whether code of the classes in it, a computed field or a serializer, decides what is written of it.

    Raises:
        TooLarge: it has more.
        Endless: a part is an iterator, or names parts without end.
    """
    if type(value) in LEAVES:
        return False
    met.has_code = False
    if not _is_small(value) and (_size_of_tree(value, most) or _Shared().size_of(value)) > most:
        raise TooLarge
    return met.has_code


def _is_small(value: object) -> bool:
    """Whether the value has few parts, each counted as often as it occurs."""
    containers: list[Any] = [value]
    for each in containers:
        opener = openers.get(type(each)) or parts_of
        parts = opener(each)
        if len(parts) > _FEW_PARTS:
            return False
        if not are_leaves(map(type, parts)):
            containers += [part for part in parts if type(part) not in LEAVES]
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
            parts += chain.from_iterable(map(openers.get(kind, parts_of), alike))
            if issubclass(kind, dict):
                size += _size_of_texts(chain.from_iterable(map(dict.__iter__, alike)))
        kinds = set(map(type, parts))
        size += len(level) + len(parts) + (_size_of_texts(parts) if str in kinds else 0)
        kinds -= LEAVES
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

    def size_of(self, value: Any, depth: int = 0) -> int:
        """Return the size of a container."""
        known = self._sizes.get(id(value))
        if known is not None:
            return known
        parts = parts_of(value)
        self._kept += value, parts
        keys = dict.__iter__(value) if issubclass(type(value), dict) else ()
        own = 1 + len(parts) + _size_of_texts(keys) + _size_of_texts(parts)
        # What holds itself, or is too deep, is refused when it is written.
        self._sizes[id(value)] = own
        if depth < _DEEPEST and not are_leaves(map(type, parts)):
            own += sum([self.size_of(part, depth + 1) for part in parts if type(part) not in LEAVES])
            self._sizes[id(value)] = own
        return own


def _size_of_texts(parts: Iterable[Any]) -> int:
    return sum([len(part) for part in parts if type(part) is str])
