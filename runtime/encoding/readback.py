"""Whether what is written of a value is read back as it was.

Most models are written and read by rules that undo each other, which their schemas tell once and for all. Only what a
schema leaves open is tried with each value: it is read back by its own type and compared.
"""

import dataclasses
import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, Final, cast

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json, to_jsonable_python

from runtime.encoding.annotations import mentions

# Instances of subclasses are written with all their fields; releases of pydantic before 2.13 know another way.
_FULLY: Final[dict[str, Any]] = (
    {"polymorphic_serialization": True}
    if "polymorphic_serialization" in getattr(to_jsonable_python, "__text_signature__", "")
    else {"serialize_as_any": True}
)
jsonable: Callable[..., Any] = partial(to_jsonable_python, **_FULLY)

SCALARS: Final[frozenset[type]] = frozenset({str, int, float, bool, type(None)})
PLAIN: Final = frozenset({dict, list})
_FAITHFUL: Final = frozenset(
    {"str", "int", "float", "bool", "none", "date", "time", "timedelta", "uuid", "decimal"}
)
# Faithful with most values: dates with most offsets, and any data that is JSON's own.
_OPEN: Final = frozenset({"any", "datetime"})
_WRAPPERS: Final = frozenset(
    {"nullable", "default", "model-field", "dataclass-field", "list", "set", "frozenset"}
)
_KINDS: Final = {
    "str": "text", "int": "number", "float": "number", "bool": "bool", "none": "none",
    "list": "list", "dict": "object", "model": "object",
}  # fmt: skip
_SECRETS: Final = (SecretStr, SecretBytes, Secret)
_UNFAITHFUL_CONFIG: Final = frozenset({"ser_json_timedelta", "ser_json_temporal", "ser_json_bytes"})
_MINUTE: Final = timedelta(minutes=1)
_MAX_KNOWN: Final = 10_000


class LossyValue(ValueError):
    """Part of a value would not be read back as it is; the text goes on from the value's place."""


def read(adapter: TypeAdapter[Any], data: Any) -> Any:
    """Return JSON data as the type an adapter stands for.

    Raises:
        ValidationError: it is none.
    """
    try:
        return adapter.validate_python(data)
    except ValidationError as refusal:
        # A strict model takes a date from JSON text but not from a Python string: ask again in JSON's terms.
        try:
            return adapter.validate_json(to_json(data))
        except ValueError:
            raise refusal from None


@dataclasses.dataclass(frozen=True, slots=True)
class _WrittenForm:
    """How values of one class are written.

    Attributes:
        is_faithful: whether, by the schema alone, each of them is read back as it was.
        is_open: whether that is so if it is so for each of its fields.
        nested: the classes within it; an instance of a subclass has a form of its own.
        adapter: reads them back; None where pydantic cannot read the class.
        options: of the dump.
    """

    is_faithful: bool = False
    is_open: bool = False
    nested: tuple[type, ...] = ()
    adapter: TypeAdapter[Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_forms: dict[type, _WrittenForm] = {}


certain: set[type] = {*SCALARS}
"""The classes whose every value is read back as it was, and that have no other models in them."""


def faithful(value: object, data: Any) -> Any:
    """Return the JSON data that is to be written for a value.

    Args:
        value: anything.
        data: what `jsonable` makes of it.

    Raises:
        Lost: it cannot be read back as it is; the text says what and why.
    """
    kind = type(value)
    if kind in certain:
        return data
    if kind in PLAIN and data == value:
        # Plain data is equal to its own JSON form, and nothing of it is lost.
        return data
    if isinstance(value, datetime):
        _refuse_odd_offset(value)
    elif isinstance(value, _SECRETS):
        raise LossyValue(
            f"is a {kind.__name__}, of which nothing but asterisks would be stored; send a reference to the "
            "secret, or say that it may be stored: get_secret_value()"
        )
    elif isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return _faithful_instance(value, data, _form(kind))
    elif isinstance(value, Mapping) and isinstance(data, dict):
        if len(data) != len(value):
            raise LossyValue("has two keys that are one and the same as text, as the keys of JSON are")
        return {key: faithful(each, data[key]) for key, each in zip(data, value.values(), strict=True)}
    elif not isinstance(value, (list, tuple, Set, deque)) or not isinstance(data, list):
        return data
    elif not set(map(type, value)) <= certain:
        return [faithful(each, item) for each, item in zip(value, data, strict=True)]
    return data


def _refuse_odd_offset(moment: datetime) -> None:
    offset = None if moment.tzinfo is UTC else moment.utcoffset()
    if offset and offset % _MINUTE:
        raise LossyValue(
            f"is a time with an offset of {offset}, of which the seconds would be lost; send it in UTC: "
            "moment.astimezone(UTC)"
        )


def _faithful_instance(value: object, data: Any, form: _WrittenForm) -> Any:
    if form.adapter is None:
        return data
    if form.is_faithful and not _has_subclasses(form.nested):
        return data
    if form.is_open:
        for name, written in data.items():
            data[name] = faithful(getattr(value, name), written)
        return data
    if form.options:
        data = jsonable(value, **form.options)
    name = type(value).__name__
    # By way of the text, which is what the reader has.
    written = from_json(to_json(data))
    try:
        back = read(form.adapter, written)
    except ValidationError as refusal:
        fault = refusal.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"])) or "value"
        raise LossyValue(
            f"is a {name} that cannot be read back as one ({where}: {fault['msg']}). {_CURE}"
        ) from None
    place = _difference(value, back)
    if place is not None:
        raise LossyValue(
            f"is a {name} that would not be read back as it is: {name}{place} would be another. {_CURE}"
        )
    return data


_CURE: Final = (
    "What its exclude, aliases, serializers or secrets leave out, no reader gets: "
    "change those, or send plain data"
)


def _difference(written: object, back: object, is_plain: bool = False) -> str | None:
    """The place of the first difference between what was written and what is read back, or None.

    Args:
        written: what was written.
        back: what is read.
        is_plain: whether the annotation takes any JSON data, so that what is read has only JSON's own types.
    """
    if isinstance(written, _SECRETS):
        same = type(back) is type(written) and back.get_secret_value() == written.get_secret_value()
        return None if same else ""
    if isinstance(written, BaseModel) or (
        dataclasses.is_dataclass(written) and not isinstance(written, type)
    ):
        return _difference_of_fields(written, back, is_plain)
    if isinstance(written, Mapping):
        if not isinstance(back, Mapping) or len(back) != len(written):
            return ""
        pairs = zip(written.values(), back.values(), strict=True) if is_plain else _by_key(written, back)
        return _first(pairs, "[…]", is_plain)
    if isinstance(written, (list, tuple, deque)):
        kind = list if is_plain else type(written)
        if type(back) is not kind or len(back) != len(written):
            return ""
        return _first(zip(written, back, strict=True), "[…]", is_plain)
    if isinstance(written, Set) and is_plain:
        return None if isinstance(back, list) and len(back) == len(written) else ""
    if written == back or (is_plain and jsonable(written) == back):
        return None
    return None if _is_one_moment(written, back) else ""


def _is_one_moment(written: object, back: object) -> bool:
    """Whether both are one moment: in the hour that comes twice in autumn, times of two zones are never equal."""
    if not isinstance(written, datetime) or not isinstance(back, datetime) or written.tzinfo is None:
        return False
    return back.tzinfo is not None and written.astimezone(UTC) == back.astimezone(UTC)


def _difference_of_fields(written: object, back: object, is_plain: bool) -> str | None:
    if not isinstance(written, type(back)):
        # Under Any it is read as an object, with whatever names its own class writes.
        return None if is_plain and isinstance(back, Mapping | list) else ""
    for name, takes_any in _fields(cast(Any, type(back))):
        place = _difference(getattr(written, name, None), getattr(back, name, None), is_plain or takes_any)
        if place is not None:
            return f".{name}{place}"
    if isinstance(back, BaseModel) and type(back) is type(written):
        extra = getattr(written, "__pydantic_extra__", None) or {}
        if len(extra) != len(back.__pydantic_extra__ or {}):
            return ""
    return None


@lru_cache(_MAX_KNOWN)
def _fields(kind: Any) -> tuple[tuple[str, bool], ...]:
    """The fields of a class, each with whether any JSON data may be in it."""
    if issubclass(kind, BaseModel):
        annotations: dict[str, Any] = {name: each.annotation for name, each in kind.model_fields.items()}
    else:
        annotations = {each.name: each.type for each in dataclasses.fields(kind)}
    return tuple(
        (name, mentions(annotation, lambda found: found in (Any, object)))
        for name, annotation in annotations.items()
    )


def _by_key(written: Mapping[Any, Any], back: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    missing = object()
    return ((value, back.get(key, missing)) for key, value in written.items())


def _first(pairs: Iterable[tuple[Any, Any]], step: str, is_plain: bool) -> str | None:
    for written, back in pairs:
        if (place := _difference(written, back, is_plain)) is not None:
            return step + place
    return None


def _has_subclasses(classes: Iterable[type]) -> bool:
    return any(map(type.__subclasses__, classes))


def _form(kind: type) -> _WrittenForm:
    """The form of a class, worked out once."""
    form = _forms.get(kind)
    if form is None:
        if len(_forms) >= _MAX_KNOWN:
            _forms.clear()
            certain.intersection_update(SCALARS)
        form = _forms[kind] = _worked_out(kind)
        if form.is_faithful and not form.nested:
            certain.add(kind)
    return form


def _worked_out(kind: type) -> _WrittenForm:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        adapter.rebuild(raise_errors=True)
        schema = _Schema(adapter.core_schema)
    except Exception:  # noqa: BLE001 - pydantic raises many kinds for a class that it cannot read
        return _WrittenForm()
    nested = tuple(schema.classes - {kind})
    return _WrittenForm(
        schema.is_faithful and not schema.is_open, schema.is_faithful, nested, adapter, schema.options
    )


class _Schema:
    """What a pydantic schema says of how its values are written and read.

    Attributes:
        is_faithful: whether reading undoes writing.
        is_open: whether it does so with most values only.
        classes: the models and dataclasses in it.
        options: how a value is to be dumped so that its readers understand it.
    """

    def __init__(self, schema: Any) -> None:
        self.classes: set[type] = set()
        self.is_faithful = True
        self.is_open = False
        self._renames = self._computes = self._counts_extra = self._has_json = False
        self._walk(schema)
        self.options: dict[str, Any] = {}
        if self._renames:
            # Written under their own names, where readers do not know those they are written under.
            self.options["by_alias"] = False
        if (self._computes and self._counts_extra) or self._has_json:
            self.options["round_trip"] = True

    def _walk(self, schema: Any) -> None:
        kind = schema["type"]
        if "serialization" in schema or not self._knows(kind, schema):
            self.is_faithful = False
        if kind in ("model", "dataclass"):
            self.classes.add(schema["cls"])
        self.is_open |= kind in _OPEN
        self._note(kind, schema)
        for part in _parts(schema):
            self._walk(part)

    def _knows(self, kind: str, schema: Any) -> bool:
        """Whether this level of a schema, without what is in it, is faithful."""
        if (
            kind in _FAITHFUL
            or kind in _OPEN
            or kind in _WRAPPERS
            or kind in ("definitions", "definition-ref")
        ):
            return not (schema.keys() & {"validation_alias", "serialization_alias"} or _is_left_out(schema))
        if kind in ("model", "dataclass"):
            config = schema.get("config") or {}
            plain = (
                not schema.get("custom_init") and not schema.get("post_init") and not schema.get("root_model")
            )
            return (
                plain
                and not config.keys() & _UNFAITHFUL_CONFIG
                and config.get("extra_fields_behavior") != "allow"
            )
        if kind in ("model-fields", "dataclass-args"):
            return not schema.get("computed_fields") and not schema.get("extras_schema")
        if kind == "dict":
            return schema.get("keys_schema", {}).get("type") in ("str", "int") and "values_schema" in schema
        if kind == "tuple":
            return bool(schema.get("items_schema"))
        if kind in ("literal", "enum"):
            known = schema["expected"] if kind == "literal" else [each.value for each in schema["members"]]
            return all(type(each) in (str, int) and not isinstance(each, enum.Enum) for each in known)
        if kind == "union":
            kinds = [_KINDS.get(_choice(each).get("type")) for each in schema["choices"]]
            return None not in kinds and len(set(kinds)) == len(kinds)
        return False

    def _note(self, kind: str, schema: Any) -> None:
        if kind.endswith("-field"):
            accepted = schema.get("validation_alias")
            names = (
                [accepted]
                if isinstance(accepted, str)
                else [path[0] for path in accepted or () if len(path) == 1]
            )
            self._renames |= "serialization_alias" in schema and schema["serialization_alias"] not in names
        self._computes |= bool(schema.get("computed_fields"))
        config = schema.get("config") or {}
        self._counts_extra |= config.get("extra_fields_behavior") in ("forbid", "allow")
        self._has_json |= kind == "json"


def _choice(choice: Any) -> Any:
    return choice[0] if isinstance(choice, tuple) else choice


def _is_left_out(field: Any) -> bool:
    return bool(
        field.get("serialization_exclude")
        or field.get("serialization_exclude_if")
        or field.get("init_only")
        or field.get("init") is False
    )


def _parts(schema: Any) -> Iterator[Any]:
    """The schemas within a schema."""
    for name in (
        "schema",
        "items_schema",
        "keys_schema",
        "values_schema",
        "extras_schema",
        "fields",
        "choices",
    ):
        part = schema.get(name)
        if isinstance(part, dict):
            yield from (part,) if "type" in part and isinstance(part["type"], str) else part.values()
        elif isinstance(part, list):
            yield from (_choice(each) for each in part if isinstance(each, (dict, tuple)))
    yield from schema.get("definitions", ())
