"""What is written under an annotation is read back equal under it, or refused at the send, in words."""

import dataclasses
import enum
import ipaddress
from collections import namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
    model_serializer,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from runtime import Agent, Context, Message
from runtime.encoding.json import decode, encode
from runtime.errors import InvalidValue

T = TypeVar("T")


def read_back(value: Any, annotation: Any = None) -> Any:
    """What a handler of the annotation gets of a value that was written."""

    def handle(value: Any) -> None: ...

    handle.__annotations__["value"] = annotation or type(value)
    agent = Agent("a")
    agent.on("a.b")(handle)
    message = Message(1, "a.b", decode(encode(value)))
    return agent.handlers[0].bind(message, Context(message, "a.handle"))["value"]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Odd(enum.Enum):
    PAIR = (1, 2)
    MORE = 1.5


class Base(BaseModel):
    a: int = 1


class Sub(Base):
    b: int = 2


class Inner(BaseModel):
    n: int = 0
    at: datetime | None = None


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str = ""


class Pair(NamedTuple):
    left: int
    right: str = ""


class Typed(TypedDict, total=False):
    one: int
    two: str


@dataclasses.dataclass
class Point:
    x: float = 0.0
    label: str | None = None


@pydantic_dataclass
class Checked:
    n: int = 0
    when: date | None = None


class Numbers(RootModel[list[int]]):
    pass


class Box(BaseModel, Generic[T]):
    content: T


class Tree(BaseModel):
    name: str = ""
    children: "list[Tree]" = []


# Whole minutes: an offset with seconds is refused.
offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(timezones=st.none() | st.just(UTC) | offsets)
odd_moments = st.datetimes(
    timezones=st.builds(timezone, st.timedeltas(-timedelta(hours=23), timedelta(hours=23)))
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)
cats, dogs = st.builds(Cat, lives=st.integers()), st.builds(Dog, name=texts)
data = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)

# What must be written and read back equal, whatever the value.
KEPT: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    int: st.integers(-(10**40), 10**40),
    float: floats,
    bool: st.booleans(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    date: st.dates(),
    time: st.times(),
    datetime: moments,
    timedelta: st.timedeltas(),
    UUID: st.uuids(),
    Colour: st.sampled_from(Colour),
    Level: st.sampled_from(Level),
    str | None: st.none() | texts,
    int | str | None: st.none() | st.integers() | texts,
    list[int]: st.lists(st.integers(), max_size=3),
    set[int]: st.sets(st.integers(), max_size=3),
    frozenset[str]: st.frozensets(texts, max_size=3),
    tuple[int, str]: st.tuples(st.integers(), texts),
    tuple[float, ...]: st.lists(floats, max_size=3).map(tuple),
    dict[str, int]: st.dictionaries(texts, st.integers(), max_size=3),
    dict[int, bool]: st.dictionaries(st.integers(), st.booleans(), max_size=3),
    dict[UUID, int]: st.dictionaries(st.uuids(), st.integers(), max_size=2),
    dict[date, list[Decimal]]: st.dictionaries(
        st.dates(), st.lists(st.decimals(allow_nan=False, allow_infinity=False), max_size=2), max_size=2
    ),
    Literal["a", 1]: st.sampled_from(["a", 1]),
    Any: data,
    dict[str, Any]: st.dictionaries(texts, data, max_size=3),
    Base: st.builds(Base, a=st.integers()),
    Inner: st.builds(Inner, n=st.integers(), at=st.none() | moments),
    list[Inner]: st.lists(st.builds(Inner, n=st.integers(), at=moments), max_size=2),
    Tree: st.recursive(
        st.builds(Tree, name=texts),
        lambda each: st.builds(Tree, children=st.lists(each, max_size=2)),
        max_leaves=4,
    ),
    Annotated[Cat | Dog, Field(discriminator="kind")]: cats | dogs,
    Pair: st.builds(Pair, st.integers(), texts),
    Typed: st.fixed_dictionaries({}, optional={"one": st.integers(), "two": texts}),
    Point: st.builds(Point, floats, st.none() | texts),
    Checked: st.builds(Checked, st.integers(), st.none() | st.dates()),
    Numbers: st.builds(Numbers, st.lists(st.integers(), max_size=3)),
    Box[int]: st.builds(Box[int], content=st.integers()),
    Base64Bytes: st.binary(max_size=8),
    Path: texts.filter(lambda text: "/" not in text).map(Path),
    ipaddress.IPv4Address: st.ip_addresses(v=4),
}

# What may be refused instead, with some values or with all.
UNSURE: dict[Any, st.SearchStrategy[Any]] = {
    bytes: st.binary(max_size=8),
    Odd: st.sampled_from(Odd),
    datetime | str: moments | texts,
    date | datetime | None: st.dates() | moments,
    UUID | str: st.uuids() | texts,
    int | float: st.integers() | floats,
    Decimal | float: floats | st.decimals(allow_nan=False, allow_infinity=False),
    Base | Inner: st.builds(Base, a=st.integers()) | st.builds(Inner, n=st.integers()),
    SecretStr: texts.map(SecretStr),
    SecretBytes | None: st.none() | st.binary(max_size=4).map(SecretBytes),
    list[SecretStr]: st.lists(texts.map(SecretStr), max_size=2),
    set[Colour] | list[str]: st.sets(st.sampled_from(Colour)) | st.lists(texts, max_size=2),
    Annotated[int, PlainSerializer(lambda n: f"<{n}>")]: st.integers(),
    Annotated[int, PlainSerializer(lambda n: str(n))]: st.integers(),
    Annotated[datetime, "odd"]: odd_moments,
    Json[list[int]]: st.lists(st.integers(), max_size=2).map(str),
    dict[int | str, int]: st.dictionaries(st.integers(0, 2) | st.sampled_from("012"), st.integers()),
}

CONFIGS: list[ConfigDict] = [
    {},
    {"extra": "forbid"},
    {"extra": "allow"},
    {"strict": True},
    {"frozen": True},
    {"alias_generator": str.upper},
    {"alias_generator": str.upper, "populate_by_name": True},
    {"use_enum_values": True},
    {"ser_json_bytes": "base64", "val_json_bytes": "base64"},
    {"ser_json_timedelta": "float"},
    {"str_strip_whitespace": True},
]

FIELDS: list[dict[str, Any]] = [
    {},
    {"alias": "other"},
    {"serialization_alias": "other"},
    {"validation_alias": "other"},
    {"validation_alias": AliasChoices("first", "second"), "serialization_alias": "second"},
    {"exclude": True},
    {"exclude": True, "default": None},
]


def computed(value: Any) -> int:
    return 3


@st.composite
def models(draw: st.DrawFn, annotations: dict[Any, Any], decorated: bool) -> BaseModel:
    """An instance of a model that nobody has seen before."""
    config = draw(st.sampled_from(CONFIGS)) if decorated else {}
    chosen = draw(st.lists(st.sampled_from(list(annotations)), min_size=1, max_size=3))
    fields: dict[str, Any] = {}
    written: dict[str, Any] = {}
    for number, annotation in enumerate(chosen):
        options = draw(st.sampled_from(FIELDS)) if decorated and not number else {}
        fields[f"field_{number}"] = (annotation, Field(**options))
        written[f"field_{number}"] = draw(annotations[annotation])
    body = {"computed": computed_field(property(computed))} if decorated and draw(st.booleans()) else {}
    base = type("Drawn", (BaseModel,), {"__module__": __name__, "model_config": config, **body})
    model = create_model("Model", __base__=base, **fields)
    names = {name: _accepted(name, model.model_fields[name], config) for name in written}
    try:
        return model.model_validate({names[name]: value for name, value in written.items()})
    except ValueError:
        return Base()


def _accepted(name: str, field: Any, config: ConfigDict) -> str:
    alias = field.validation_alias
    return alias if isinstance(alias, str) else alias.choices[0] if alias is not None else name


unhurried = settings(deadline=None, derandomize=True, max_examples=400, database=None)


@unhurried
@given(models(KEPT, decorated=False))
def test_v3_a_model_is_read_back_equal(value: BaseModel) -> None:
    assert read_back(value) == value


@unhurried
@given(st.data())
def test_v3_a_value_of_a_usual_annotation_is_read_back_equal(data: st.DataObject) -> None:
    annotation = data.draw(
        st.sampled_from([each for each in KEPT if each not in (Base64Bytes, int | str | None)])
    )
    value = data.draw(KEPT[annotation])
    assert read_back(value, annotation) == value


@unhurried
@given(models(KEPT | UNSURE, decorated=True))
def test_v3_any_model_is_read_back_equal_or_refused_in_words(value: BaseModel) -> None:
    words = refused(value)
    if words is None:
        back = read_back(value)
        assert back == value
        assert type(back) is type(value)
    else:
        assert words.startswith("The value cannot be stored: ")
        assert len(words) > 60


def refused(value: object) -> str | None:
    """The words that a value is refused with, or None."""
    try:
        encode(value)
    except InvalidValue as refusal:
        return str(refusal)
    return None


class Account(BaseModel):
    password: SecretStr


class Open(BaseModel):
    password: SecretStr

    @field_serializer("password")
    def shown(self, password: SecretStr) -> str:
        return password.get_secret_value()


class Masked(Secret[int]):
    def _display(self) -> str:
        return "?"


class Holder(BaseModel):
    anything: Any = None
    items: list[Base] = []


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (SecretStr("hush"), "it is a SecretStr"),
        (SecretBytes(b"hush"), "it is a SecretBytes"),
        (Secret[int](4711), r"it is a Secret"),
        (Masked(4711), r"it is a Masked"),
        ([1, SecretStr("hush")], r"value\[1\] is a SecretStr"),
        ({"a": {"b": (SecretStr("hush"),)}}, r"value\['a'\]\['b'\]\[0\] is a SecretStr"),
        (Account(password=SecretStr("hush")), r"value\.password is a SecretStr"),
        ([Account(password=SecretStr("hush"))], r"value\[0\]\.password is a SecretStr"),
        (Holder(anything={"a": SecretStr("hush")}), r"value\.anything\['a'\] is a SecretStr"),
        (Holder(anything=Account(password=SecretStr("hush"))), r"value\.anything\.password is a SecretStr"),
    ],
    ids=repr,
)
def test_v2_a_secret_is_refused_instead_of_stored_as_asterisks(value: object, place: str) -> None:
    with pytest.raises(InvalidValue, match=rf"{place}.*get_secret_value\(\)") as caught:
        encode(value)
    assert "hush" not in str(caught.value)


def test_v2_a_secret_that_its_model_shows_is_kept() -> None:
    value = Open(password=SecretStr("hush"))
    assert read_back(value) == value


@dataclasses.dataclass
class Outer:
    inner: Base


@pytest.mark.parametrize(
    "value",
    [
        Holder(items=[Base(), Sub(b=5)]),
        [Holder(items=[Sub(b=5)])],
        {"a": Holder(items=[Sub(b=5)])},
        Holder(anything=Holder(items=[Sub(b=5)])),
        Outer(Sub(b=5)),
        Box[Base](content=Sub(b=5)),
        RootModel[list[Base]]([Sub(b=5)]),
    ],
    ids=repr,
)
def test_v2_the_fields_of_a_nested_subclass_are_written(value: object) -> None:
    assert '"b":5' in encode(value)


class Quiet(Base):
    hidden: SecretStr = SecretStr("hush")


def test_v2_a_secret_of_a_nested_subclass_is_refused() -> None:
    assert encode(Holder(items=[Base()])) == '{"anything":null,"items":[{"a":1}]}'
    with pytest.raises(InvalidValue, match=r"value\.items\[0\]\.hidden is a SecretStr"):
        encode(Holder(items=[Quiet()]))


class Other(enum.Enum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({1: "a", "1": "b"}, "it"),
        ({"a": [{}, {1: "a", "1": "b"}]}, r"value\['a'\]\[1\]"),
        ({None: 1, "None": 2}, "it"),
        ({True: 1, "true": 2}, "it"),
        ({1.5: 1, "1.5": 2}, "it"),
        ({Other.ONE: 1, "1": 2}, "it"),
        ({date(2026, 1, 1): 1, "2026-01-01": 2}, "it"),
        ({(1, 2): 1, "1,2": 2}, "it"),
        (({1: "a", "1": "b"},), r"value\[0\]"),
        (Holder(anything={1: "a", "1": "b"}), r"value\.anything"),
        (Box[dict[int | str, int]](content={1: 1, "1": 2}), r"value\.content"),
    ],
    ids=repr,
)
def test_v2_keys_that_are_one_as_text_are_refused(value: object, place: str) -> None:
    with pytest.raises(
        InvalidValue, match=rf"The value cannot be stored: {place} has two keys with the same text"
    ):
        encode(value)


def test_v2_keys_that_differ_as_text_are_kept() -> None:
    assert decode(encode({1: "a", "2": "b", None: 3})) == {"1": "a", "2": "b", "None": 3}


class Forbidding(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: int

    @computed_field
    @property
    def twice(self) -> int:
        return self.n * 2


class Lenient(BaseModel):
    n: int

    @computed_field
    @property
    def twice(self) -> int:
        return self.n * 2


class Renamed(BaseModel):
    n: int = Field(serialization_alias="number")


class RenamedWithDefault(BaseModel):
    n: int = Field(default=1, serialization_alias="number")


class Aliased(BaseModel):
    n: int = Field(alias="number")


class Parsed(BaseModel):
    n: Json[list[int]]


class ByNameOnly(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    n: int = Field(validation_alias="number")


class WithPrivate(BaseModel):
    n: int = 1
    _seen: int = PrivateAttr(default=0)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Forbidding(n=2), '{"n":2}'),
        ([Forbidding(n=2)], '[{"n":2}]'),
        ({"a": (Forbidding(n=2),)}, '{"a":[{"n":2}]}'),
        (Lenient(n=2), '{"n":2,"twice":4}'),
        (Renamed(n=2), '{"n":2}'),
        ([Renamed(n=2)], '[{"n":2}]'),
        (RenamedWithDefault(n=1), '{"n":1}'),
        (Aliased(number=2), '{"number":2}'),
        (Parsed(n="[1]"), '{"n":"[1]"}'),  # type: ignore[arg-type]
        (ByNameOnly(n=2), '{"n":2}'),
        (WithPrivate(n=2), '{"n":2}'),
    ],
    ids=repr,
)
def test_v3_what_its_readers_would_not_understand_is_written_as_they_do(value: Any, stored: str) -> None:
    assert encode(value) == stored
    if isinstance(value, BaseModel):
        assert read_back(value) == value


class Excluding(BaseModel):
    n: int = Field(exclude=True)
    m: int = Field(default=0, exclude=True)


class OnlyValidated(BaseModel):
    n: int = Field(validation_alias="number")


class Lossy(BaseModel):
    at: datetime

    @field_serializer("at")
    def day(self, at: datetime) -> str:
        return at.date().isoformat()


class Whole(BaseModel):
    n: int

    @model_serializer
    def whole(self) -> str:
        return str(self.n)


class Doubling(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def doubled(cls, n: int) -> int:
        return n * 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Excluding(n=1), r"it is a Excluding that cannot be read back as one \(n: Field required\)"),
        (OnlyValidated(number=1), r"cannot be read back as one \(number: Field required\)"),
        (Lossy(at=datetime(2026, 1, 1, 12)), r"would not be read back as it is: Lossy\.at would differ"),
        ([Lossy(at=datetime(2026, 1, 1, 12))], r"value\[0\] is a Lossy that would not be read back"),
        (Whole(n=1), "it is a Whole that cannot be read back"),
        (Doubling(n=1), r"Doubling\.n would differ"),
        (datetime(1800, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), "an offset of 0:09:21, whose seconds"),
        (
            {"at": Inner(at=datetime(1800, 1, 1, tzinfo=ZoneInfo("Europe/Paris")))},
            r"value\['at'\]\.at is a time",
        ),
    ],
    ids=repr,
)
def test_v3_what_would_not_be_read_back_is_refused_with_its_place(value: object, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        encode(value)


def test_v3_a_subclass_that_is_declared_later_is_seen() -> None:
    class Parent(BaseModel):
        n: int = 1

    class House(BaseModel):
        parent: Parent

    assert encode(House(parent=Parent())) == '{"parent":{"n":1}}'

    class Child(Parent):
        toy: str = "ball"

    assert encode(House(parent=Child())) == '{"parent":{"n":1,"toy":"ball"}}'


def test_v3_a_time_in_the_hour_that_comes_twice_is_written() -> None:
    twice = datetime(2008, 10, 26, 2, tzinfo=ZoneInfo("Europe/Paris"))
    assert encode(Inner(at=twice)) == '{"n":0,"at":"2008-10-26T02:00:00+02:00"}'
    assert encode(Box[Inner | int](content=Inner(at=twice))).endswith('"2008-10-26T02:00:00+02:00"}}')


def test_v3_plain_containers_of_any_kind_are_written() -> None:
    Place = namedtuple("Place", "x y")
    assert (
        encode({"a": (1, 2), "b": {3}, "c": Place(1, 2), "d": Pair(1)})
        == '{"a":[1,2],"b":[3],"c":[1,2],"d":[1,""]}'
    )
