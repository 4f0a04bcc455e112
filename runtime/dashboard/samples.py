"""A sample of the value a handler takes, from its JSON schema, to begin a message from."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.dashboard.schemas import Declared

_DEPTH: Final = 6
_TEXTS: Final = {
    "date-time": "2026-12-24T18:00:00Z", "date": "2026-12-24", "time": "18:00:00Z", "duration": "PT5M",
    "email": "name@example.com", "uri": "https://example.com/", "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "192.0.2.1", "ipv6": "2001:db8::1", "binary": "", "password": "…",
}  # fmt: skip


def sample_of(declared: Declared | None) -> Any:
    """Return a sample for a handler; `{}` where its schema is not known or takes any value."""
    if declared is None or declared.schema is None:
        return {}
    found = _sample(declared.schema, declared.schema, _DEPTH)
    return {} if found is None and "type" not in declared.schema else found


def _sample(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    """Return a value of a schema, its own example or default if it has one."""
    if not isinstance(schema, Mapping) or depth < 0:
        return None
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    for several in ("examples", "enum"):
        if schema.get(several):
            return schema[several][0]
    if "$ref" in schema:
        return _sample(_resolved(schema["$ref"], root), root, depth - 1)
    for choice in ("anyOf", "oneOf"):
        if schema.get(choice):
            # Optional values are `anyOf` something and null.
            most = next((each for each in schema[choice] if each.get("type") != "null"), schema[choice][0])
            return _sample(most, root, depth - 1)
    if schema.get("allOf"):
        return _sample(schema["allOf"][0], root, depth - 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        # What has a default may be left out, and is shown all the same, unless the sample would grow without end.
        return {
            name: _sample(each, root, depth - 1)
            for name, each in properties.items()
            if name in required or (depth == _DEPTH and _has_text(each))
        }
    if kind == "array":
        parts = schema.get("prefixItems")
        if parts:
            return [_sample(each, root, depth - 1) for each in parts]
        item = _sample(schema.get("items"), root, depth - 1)
        return [] if item is None else [item] * max(1, min(3, int(schema.get("minItems", 1))))
    if kind in ("integer", "number"):
        return _number(schema)
    if kind == "string":
        text = _TEXTS.get(schema.get("format", ""), "text")
        return text.ljust(min(200, int(schema.get("minLength", 0))), "x")[: schema.get("maxLength")]
    return False if kind == "boolean" else None


def _number(schema: Mapping[str, Any]) -> float:
    """Return the lowest number that a schema allows, or 1 if that is allowed."""
    lowest = schema.get("minimum", schema["exclusiveMinimum"] + 1 if "exclusiveMinimum" in schema else None)
    highest = schema.get("maximum", schema["exclusiveMaximum"] - 1 if "exclusiveMaximum" in schema else None)
    if lowest is not None and lowest > 1:
        return float(lowest) if schema.get("type") == "number" else int(lowest)
    return min(1, highest) if highest is not None else 1


def _resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """Return the definition that a reference within the schema names; None if there is none."""
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _has_text(schema: Any) -> bool:
    """Whether a property that may be left out has a default worth showing."""
    return isinstance(schema, Mapping) and schema.get("default", "") is not None
