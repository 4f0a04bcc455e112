"""Does any value keep the encoder busy for ever, fill the memory, or escape from it as another error?"""

import dataclasses
import enum
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple
from unittest.mock import MagicMock, Mock

import pytest
from pydantic import BaseModel, ConfigDict, PlainSerializer, RootModel, computed_field, field_serializer

from runtime.encoding.json import encode
from runtime.encoding.unreadable import Unreadable
from runtime.errors import InvalidValue
from runtime.message import Draft


class ReadOnAndOn(BaseException):
    """More was read than anybody needs: without this the test would never end."""


class Endless(Iterator[int]):
    """An iterator without an end."""

    def __init__(self, most: int = 1_000) -> None:
        self.read, self.most = 0, most

    def __next__(self) -> int:
        self.read += 1
        if self.read > self.most:
            raise ReadOnAndOn
        return self.read


def endless() -> Iterator[int]:
    yield from Endless()


class Model(BaseModel):
    part: Any = None


class Items(BaseModel):
    part: Iterable[int] = ()


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Computed(BaseModel):
    @computed_field  # type: ignore[prop-decorator]
    @property
    def part(self) -> Any:
        return {"deep": [Endless()]}


class Serialized(BaseModel):
    part: int = 1

    @field_serializer("part")
    def _write(self, _: int) -> Any:
        return Endless()


class Annotation(BaseModel):
    parts: list[Annotated[int, PlainSerializer(lambda _: Endless())]] = [1]


@dataclasses.dataclass
class Plain:
    part: Any


class Named(NamedTuple):
    part: Any


class Member(enum.Enum):
    ENDLESS = Endless()


ITERATORS: dict[str, Callable[[], Any]] = {
    "iterator": Endless,
    "generator": endless,
    "map": lambda: map(str, Endless()),
    "zip": lambda: zip(Endless(), Endless(), strict=False),
    "of its own": lambda: iter(Endless().__next__, None),
    "an iterator of iterators": lambda: (Endless() for _ in range(1)),
    "a dict's key": lambda: {Endless(): 1},
    "in a dict's key": lambda: {(1, Endless()): 1},
    "set": lambda: {Endless()},
    "deque": lambda: deque([Endless()]),
    "ordered": lambda: OrderedDict(part=Endless()),
    "named tuple": lambda: Named(Endless()),
    "dataclass": lambda: Plain(Endless()),
    "model": lambda: Model(part=Endless()),
    "model of iterables": lambda: Items(part=Endless()),
    "root": lambda: RootModel[Any](Endless()),
    "extra": lambda: Open.model_validate({"part": Endless()}),
    "member": lambda: Member.ENDLESS,
    "computed field": Computed,
    "field serializer": Serialized,
    "annotated serializer": Annotation,
    "finite": lambda: iter([1]),
    "anything": MagicMock,
}


@pytest.mark.parametrize("make", ITERATORS.values(), ids=list(ITERATORS))
def test_v6_an_iterator_is_refused_unread_wherever_it_is(make: Callable[[], Any]) -> None:
    for value in (make(), {"a": [1, make()]}, [[1] * 100, make()], Model(part=make())):
        with pytest.raises(InvalidValue, match="iterator"):
            encode(value)
    with pytest.raises(InvalidValue, match="iterator"):
        Draft("a.b", 1, headers={"x": make()})


def test_v6_the_place_of_an_iterator_is_told() -> None:
    with pytest.raises(
        InvalidValue, match=r"value\['a'\]\[1\]\.part is an iterator.* send its items: list\("
    ):
        encode({"a": [1, Model(part=Endless())]})


class OwnList(list[Any]):
    """All its methods lie; its items are where the encoder takes them from."""

    def __iter__(self) -> Any:
        return Endless()

    def __len__(self) -> int:
        raise ReadOnAndOn


class OwnTuple(tuple[Any, ...]):
    def __iter__(self) -> Any:
        return Endless()


class OwnDict(dict[str, Any]):
    def __iter__(self) -> Any:
        return Endless()

    def __len__(self) -> int:
        return 10**9

    keys = values = items = __iter__


@pytest.mark.parametrize(
    ("value", "text"),
    [(OwnList([1, []]), "[1,[]]"), (OwnTuple([1, []]), "[1,[]]"), (OwnDict(a=1, b=[]), '{"a":1,"b":[]}')],
)
def test_v6_what_a_container_keeps_is_written_whatever_its_class_says(value: Any, text: str) -> None:
    assert encode(value) == text
    assert encode([value]) == f"[{text}]"
    with pytest.raises(InvalidValue, match="is nan"):
        encode(type(value)({"a": float("nan")} if isinstance(value, dict) else [1, float("nan")]))


class EndlessSet(set[int]):
    def __iter__(self) -> Any:
        return itertools.repeat(1, 20_000_000)


class EndlessMapping(Mapping[str, int]):
    def __iter__(self) -> Any:
        return map(str, Endless(100_000))

    def __getitem__(self, key: str) -> int:
        return 1

    def __len__(self) -> int:
        return 3


def test_v6_elements_that_a_class_names_without_end_are_read_up_to_a_bound() -> None:
    for value in (EndlessSet([1]), [EndlessSet([1])]):
        with pytest.raises(InvalidValue, match="more elements than can be stored"):
            encode(value)
    kept = Unreadable.because("what keeps the search for markers busy")
    for value in (EndlessMapping(), MappingProxyType({"a": 1})):
        with pytest.raises(InvalidValue, match="no JSON form"):
            encode(value)
    with pytest.raises(InvalidValue, match="headers take"):
        Draft("a.b", 1, headers=EndlessMapping())
    with pytest.raises(InvalidValue, match="which Python cannot represent"):
        encode([kept])


class Grows:
    """A class that says it is another one."""

    @property
    def __class__(self) -> Any:
        return dict


@dataclasses.dataclass
class Chain:
    part: Any = None


class Renewed(Chain):
    part = property(lambda self: Renewed())  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


class Raises(BaseModel):
    @computed_field  # type: ignore[prop-decorator]
    @property
    def part(self) -> int:
        raise KeyError("hidden")


class Incomparable(list[Any]):
    def __eq__(self, other: object) -> bool:
        raise KeyError("never equal")

    __hash__ = None  # type: ignore[assignment]


class Silent:
    def __repr__(self) -> str:
        raise ReadOnAndOn

    __str__ = __repr__


class NoDataclass:
    __dataclass_fields__ = 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Grows, "no JSON form"),
        (lambda: Mock(spec=Model), "no JSON form"),
        (Renewed, "levels deep"),
        (Raises, "raised KeyError: 'hidden'"),
        (lambda: {"own": Incomparable([1])}, "raised KeyError: 'never equal'"),
        (lambda: {Silent(): 1}, "the key of the type Silent, which has no JSON form"),
        (lambda: {10**5000: 1}, "the key of the type int, which has no JSON form"),
        (NoDataclass, "no JSON form|own class raised"),
    ],
)
def test_v6_a_class_that_lies_or_raises_is_refused_with_words(make: Callable[[], Any], words: str) -> None:
    for value in (make(), {"a": make()}):
        with pytest.raises(InvalidValue, match=words):
            encode(value)


class Cached(BaseModel):
    part: int = 1

    @cached_property
    def kept(self) -> Any:
        return Endless()


def test_v6_what_is_kept_beside_the_fields_does_not_count() -> None:
    cached = Cached()
    assert isinstance(cached.kept, Endless)
    assert encode([cached]) == '[{"part":1}]'
