"""A check that a value's JSON is read back as the same value.

For most models the schema alone proves it, once for all values. Where the schema leaves it open, each value is read
back by its own type and compared.
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
from runtime.encoding.parts import items_of

# Instances of subclasses are written with all their fields; pydantic before 2.13 has another option for it.
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
# Faithful for most values: times with most offsets, and plain JSON data.
_OPEN: Final = frozenset({"any", "datetime"})
_WRAPPERS: Final = frozenset(
    {"nullable", "default", "model-field", "dataclass-field", "list", "set", "frozenset"}
)
_TRANSPARENT: Final = _FAITHFUL | _OPEN | _WRAPPERS | {"definitions", "definition-ref"}
_PARTS: Final = (
    "schema", "items_schema", "keys_schema", "values_schema", "extras_schema", "fields", "choices",
)  # fmt: skip
_KINDS: Final = {
    "str": "text", "int": "number", "float": "number", "bool": "bool", "none": "none",
    "list": "list", "dict": "object", "model": "object",
}  # fmt: skip
_SECRETS: Final = (SecretStr, SecretBytes, Secret)
_UNFAITHFUL_CONFIG: Final = frozenset({"ser_json_timedelta", "ser_json_temporal", "ser_json_bytes"})
_MINUTE: Final = timedelta(minutes=1)
_MAX_KNOWN: Final = 10_000


class LossyValue(ValueError):
    """Part of a value would not be read back as it is; the text continues a sentence about that part."""


def read(adapter: TypeAdapter[Any], data: Any) -> Any:
    """Return JSON data as the adapter's type.

    Raises:
        ValidationError: the data does not fit.
    """
    try:
        return adapter.validate_python(data)
    except ValidationError as refusal:
        # A strict model takes a date from JSON text but not from a Python string.
        try:
            return adapter.validate_json(to_json(data))
        except ValueError:
            raise refusal from None


@dataclasses.dataclass(frozen=True, slots=True)
class _WrittenForm:
    """How values of one class are written.

    Attributes:
        is_faithful: whether the schema alone proves that every value is read back as it was.
        is_open: whether a value is read back as it was if each of its fields is.
        nested: the classes within it; an instance of a subclass has a form of its own.
        adapter: reads values back; None if pydantic cannot read the class.
        options: of the dump.
    """

    is_faithful: bool = False
    is_open: bool = False
    nested: tuple[type, ...] = ()
    adapter: TypeAdapter[Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_forms: dict[type, _WrittenForm] = {}


certain: set[type] = {*SCALARS}
"""The classes whose every value is read back as it was, without other models in them."""


def faithful(value: object, data: Any) -> Any:
    """Return the JSON data to write for a value.

    Args:
        value: any value.
        data: the result of `jsonable` for it.

    Raises:
        LossyValue: it would not be read back as it is; the text says which part and why.
    """
    kind = type(value)
    if kind in certain:
        return data
    if kind in PLAIN and data == value:
        # Plain data is equal to its own JSON form, and nothing of it is lost.
        return data
    if issubclass(kind, datetime):
        _refuse_odd_offset(cast(datetime, value))
    elif issubclass(kind, _SECRETS):
        raise LossyValue(
            f"is a {kind.__name__}, of which only asterisks would be stored; send a reference to the secret, or allow "
            "its storage: get_secret_value()"
        )
    elif issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind):
        return _faithful_instance(value, data, _form(kind))
    elif issubclass(kind, dict) and isinstance(data, dict):
        if len(data) != dict.__len__(cast(Any, value)):
            raise LossyValue("has two keys with the same text, which are one key in JSON")
        parts = dict.values(cast(Any, value))
        return {key: faithful(each, data[key]) for key, each in zip(data, parts, strict=True)}
    elif not issubclass(kind, (list, tuple, set, frozenset, deque)) or not isinstance(data, list):
        return data
    elif not set(map(type, items_of(value))) <= certain:
        return [faithful(each, item) for each, item in zip(items_of(value), data, strict=True)]
    return data


def _refuse_odd_offset(moment: datetime) -> None:
    offset = None if moment.tzinfo is UTC else moment.utcoffset()
    if offset and offset % _MINUTE:
        raise LossyValue(
            f"is a time with an offset of {offset}, whose seconds would be lost; send it in UTC: "
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
    # Through the text, as its reader gets it.
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
            f"is a {name} that would not be read back as it is: {name}{place} would differ. {_CURE}"
        )
    return data


_CURE: Final = "Its exclude, aliases, serializers or secrets lose data: change them, or send plain data"


def _difference(written: object, back: object, is_plain: bool = False) -> str | None:
    """Return the path of the first difference between a written value and the one read back, or None.

    Args:
        written: the written value.
        back: the value read back.
        is_plain: whether the annotation takes any JSON data, so that `back` has only JSON's own types.
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
    """Whether both are the same time: Python never finds times of two zones equal in the hour repeated in autumn."""
    if not isinstance(written, datetime) or not isinstance(back, datetime) or written.tzinfo is None:
        return False
    return back.tzinfo is not None and written.astimezone(UTC) == back.astimezone(UTC)


def _difference_of_fields(written: object, back: object, is_plain: bool) -> str | None:
    if not isinstance(written, type(back)):
        # Under Any it is read as a mapping, with the names that its own class writes.
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
    """Return the fields of a class, each with whether it takes any JSON data."""
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
    """Return the form of a class, from the cache if possible."""
    form = _forms.get(kind)
    if form is None:
        if len(_forms) >= _MAX_KNOWN:
            _forms.clear()
            certain.intersection_update(SCALARS)
        form = _forms[kind] = _form_of(kind)
        if form.is_faithful and not form.nested:
            certain.add(kind)
    return form


def _form_of(kind: type) -> _WrittenForm:
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
    """How the values of a pydantic schema are written and read.

    Attributes:
        is_faithful: whether reading undoes writing.
        is_open: whether it does so for most values only.
        classes: the models and dataclasses in it.
        options: of the dump, so that readers understand it.
    """

    def __init__(self, schema: Any) -> None:
        self.classes: set[type] = set()
        self.is_faithful = True
        self.is_open = False
        self._renames = self._computes = self._counts_extra = self._has_json = False
        self._walk(schema)
        self.options: dict[str, Any] = {}
        if self._renames:
            # The readers do not know the serialization aliases: write the fields' own names.
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
        """Whether this level of a schema is faithful, apart from its inner levels."""
        if kind in _TRANSPARENT:
            return not (schema.keys() & {"validation_alias", "serialization_alias"} or _is_left_out(schema))
        if kind in ("model", "dataclass"):
            config = schema.get("config") or {}
            is_custom = any(schema.get(name) for name in ("custom_init", "post_init", "root_model"))
            allows_extra = config.get("extra_fields_behavior") == "allow"
            return not (is_custom or config.keys() & _UNFAITHFUL_CONFIG or allows_extra)
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
            paths = [[accepted]] if isinstance(accepted, str) else accepted or ()
            names = [path[0] for path in paths if len(path) == 1]
            self._renames |= "serialization_alias" in schema and schema["serialization_alias"] not in names
        self._computes |= bool(schema.get("computed_fields"))
        config = schema.get("config") or {}
        self._counts_extra |= config.get("extra_fields_behavior") in ("forbid", "allow")
        self._has_json |= kind == "json"


def _choice(choice: Any) -> Any:
    return choice[0] if isinstance(choice, tuple) else choice


def _is_left_out(field: Any) -> bool:
    excludes = ("serialization_exclude", "serialization_exclude_if", "init_only")
    return any(field.get(name) for name in excludes) or field.get("init") is False


def _parts(schema: Any) -> Iterator[Any]:
    """Yield the schemas within a schema."""
    for name in _PARTS:
        part = schema.get(name)
        if isinstance(part, dict):
            yield from (part,) if "type" in part and isinstance(part["type"], str) else part.values()
        elif isinstance(part, list):
            yield from (_choice(each) for each in part if isinstance(each, (dict, tuple)))
    yield from schema.get("definitions", ())
