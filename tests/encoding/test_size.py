"""Is a value whose parts occur very many times refused at once, and no other that can be written?"""

import dataclasses
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PlainSerializer, RootModel, field_serializer, model_serializer

from runtime.encoding.json import MAX_BYTES, encode
from runtime.encoding.size import TooLarge, check_size
from runtime.errors import InvalidValue
from runtime.message import Draft

LEVELS = 90


class Model(BaseModel):
    parts: Any


class Root(RootModel[Any]):
    pass


@dataclasses.dataclass
class Plain:
    parts: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    parts: Any


class Named(NamedTuple):
    one: Any
    two: Any


class Left(BaseModel):
    """Writes little of much."""

    out: Any = Field(exclude=True, default=None)
    counted: Annotated[Any, PlainSerializer(len)] = ()
    summed: Any = ()

    @field_serializer("summed")
    def _sum(self, each: Any) -> int:
        return len(each)


class Own(BaseModel):
    parts: Any

    @model_serializer
    def _write(self) -> str:
        return "little"


def doubled(wrap: Callable[[Any], Any], first: Any = "x") -> Any:
    """A value of few parts, each of which occurs twice in the next."""
    value = first
    for _ in range(LEVELS):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap",
    [
        lambda it: [it, it],
        lambda it: (it, it),
        lambda it: {"a": it, "b": it},
        lambda it: OrderedDict(a=it, b=it),
        lambda it: deque([it, it]),
        lambda it: Named(it, it),
        lambda it: [[it], 1, [it]],
        lambda it: [it, [it]],
        lambda it: Model.model_construct(parts=[it, it]),
        lambda it: Root.model_construct([it, it]),
        lambda it: Plain([it, it]),
        lambda it: [Slotted(it), Slotted(it)],
        lambda it: {"one": "text", "two": [None, {"three": it}], "three": it, "four": datetime.now(UTC)},
    ],
)
def test_parts_that_occur_endlessly_are_refused_at_once(wrap: Callable[[Any], Any]) -> None:
    for value in (doubled(wrap), {"deep": [1, {"down": doubled(wrap)}]}):
        with pytest.raises(InvalidValue, match=r"takes more than 16 MB in JSON, .* occurs"):
            encode(value)
    with pytest.raises(InvalidValue, match="takes more than 16 MB in JSON"):
        Draft("a.b", 1, headers={"x": doubled(wrap)})


@pytest.mark.parametrize(
    "value",
    [
        ["x" * 1000] * 20_000,
        [{"k" * 1000: 1}] * 20_000,
        [["x" * 1000] * 70] * 300,
        [{"a": b"x" * 5}] * 6_000_000,
    ],
)
def test_so_are_long_texts_and_keys(value: Any) -> None:
    with pytest.raises(TooLarge):
        check_size(value, 1_000_000)


def test_what_a_model_leaves_out_or_writes_in_its_own_way_does_not_count() -> None:
    much = doubled(lambda it: [it, it])
    check_size([Left(out=much, counted=much, summed=much)] * 100, MAX_BYTES)
    check_size([Own(parts=much)] * 100, MAX_BYTES)


@pytest.mark.parametrize("levels", [3, 14])
def test_parts_that_occur_often_are_written_as_often(levels: int) -> None:
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    assert len(encode(value)) == 2 ** (levels + 2) - 2 + 2**levels - 1


scalars = (
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner).map(lambda it: it * 50)
    | st.lists(inner, min_size=1, max_size=3).map(lambda it: it * 30) | st.builds(Model, parts=inner),
    max_leaves=20,
)  # fmt: skip


@given(values.filter(lambda value: isinstance(value, (list, tuple, dict, Model))))
def test_no_value_is_counted_as_larger_than_it_is_written(value: Any) -> None:
    try:
        text = encode(value)
    except InvalidValue:
        return
    check_size(value, len(text))
