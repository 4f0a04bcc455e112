"""The `postgres_changes` entries of a join, read as Realtime reads them."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from runtime.local.gateway.frames import compact

Event = Literal["INSERT", "UPDATE", "DELETE", "*"]

_KNOWN: Final = frozenset({
    "eq", "neq", "lt", "lte", "gt", "gte", "in", "like", "ilike", "is", "match", "imatch", "isdistinct",
})  # fmt: skip


class BindingRefused(ValueError):
    """The entry makes no sense; the text is for the client."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a filter. For `in` the value is an array literal."""

    column: str
    operator: str
    value: str
    negated: bool


@dataclass(frozen=True, slots=True)
class Binding:
    """One entry: tables by name, where `*` is any; all conditions must hold; no `select` is every column."""

    id: int
    event: Event
    schema: str
    table: str
    conditions: tuple[Condition, ...]
    select: tuple[str, ...] | None

    def describe(self) -> str:
        """The entry as the server's error texts repeat it."""
        filters = inspect_list([(c.column, c.operator, c.value, c.negated) for c in self.conditions])
        select = "nil" if self.select is None else inspect_list(self.select)
        tables = f"schema: {self.schema}, table: {self.table}"
        return f"[event: {self.event}, {tables}, filters: {filters}, select: {select}]"


def binding_id(entry: Mapping[str, Any]) -> int:
    """A number below 2^27, the same for the same entry wherever it appears."""
    return zlib.crc32(compact(entry).encode()) & 0x7FF_FFFF


def read_binding(entry: Mapping[str, Any]) -> Binding:
    """Read one entry.

    Raises:
        BindingRefused: with the server's own text.
    """
    schema, table = entry.get("schema"), entry.get("table")
    if schema is None and table is None:
        raise BindingRefused(
            "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: "
            + inspect(dict(entry))
        )
    schema = "public" if schema is None else str(schema)
    table = "*" if table is None else str(table)
    select = _read_select(entry.get("select"))
    if select is not None and "*" in (schema, table):
        raise BindingRefused(
            "Column selection is not supported for wildcard subscriptions. "
            "Provide an explicit schema and table name."
        )
    wanted = entry.get("event")
    # Anything but the three names, "insert" too, counts as every event.
    event: Event = wanted if wanted in ("INSERT", "UPDATE", "DELETE") else "*"
    return Binding(binding_id(entry), event, schema, table, _read_filter(entry.get("filter")), select)


def _read_select(select: Any) -> tuple[str, ...] | None:
    if select is None:
        return None
    if not isinstance(select, list):
        raise BindingRefused(
            "Error parsing `select` params: "
            'expected a list of column name strings, e.g. select: ["col1", "col2"]'
        )
    return tuple(name for name in select if isinstance(name, str))


def _read_filter(text: Any) -> tuple[Condition, ...]:
    if not isinstance(text, str) or not text.strip():
        return ()
    segments = [segment.strip() for segment in _segments(text)]
    if not all(segments):
        raise _unparsable("filter must not contain empty segments (check for extra commas)")
    return tuple(_read_condition(segment) for segment in segments)


def _segments(text: str) -> Iterator[str]:
    """Split at commas outside parentheses and outside quotes that open right after `.`, `(` or `,`."""
    depth, is_quoted, begin, previous, skip = 0, False, 0, "", False
    for at, character in enumerate(text):
        if skip:
            skip = False
        elif is_quoted:
            skip = character == "\\"
            is_quoted = character != '"'
        elif character == '"' and previous in {".", "(", ","}:
            is_quoted = True
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character == "," and depth <= 0:
            yield text[begin:at]
            begin = at + 1
        previous = character
    yield text[begin:]


def _read_condition(segment: str) -> Condition:
    column, equals, rest = segment.partition("=")
    if not equals:
        raise _unparsable(inspect_list([segment]))
    negated = rest.startswith("not.")
    operator, dot, value = rest.removeprefix("not.").partition(".")
    if not dot or operator not in _KNOWN:
        raise _unparsable(inspect_list([operator, value] if dot else [operator]))
    if operator != "in":
        return Condition(column, operator, _unquoted(value), negated)
    if not (value.startswith("(") and value.endswith(")")):
        raise _unparsable("`in` filter value must be wrapped by parentheses")
    return Condition(column, operator, "{" + value[1:-1] + "}", negated)


def _unquoted(value: str) -> str:
    """Return the text in the quotes if they span the whole value; else the value."""
    if len(value) < 2 or not value.startswith('"'):
        return value
    found: list[str] = []
    characters = enumerate(value[1:], start=1)
    for at, character in characters:
        if character == '"':
            return "".join(found) if at == len(value) - 1 else value
        found.append(next(characters, (0, ""))[1] if character == "\\" else character)
    return value


def _unparsable(why: str) -> BindingRefused:
    return BindingRefused(f"Error parsing `filter` params: {why}")


def inspect(value: Any) -> str:
    """A value as Elixir's `inspect` prints it on one line: the server's texts are full of it."""
    match value:
        case None:
            return "nil"
        case bool():
            return "true" if value else "false"
        case str():
            escaped = (
                value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
            )
            return f'"{escaped}"'
        case list():
            return "[" + ", ".join(map(inspect, value)) + "]"
        case tuple():
            return "{" + ", ".join(map(inspect, value)) + "}"
        case dict():
            return (
                "%{" + ", ".join(f"{inspect(name)} => {inspect(value[name])}" for name in sorted(value)) + "}"
            )
        case _:
            return str(value)


def inspect_list(items: Any, width: int = 80) -> str:
    """A list as `inspect` prints it, broken into lines where it is wider than a screen."""
    line = inspect(list(items))
    if len(line) <= width:
        return line
    return "[\n  " + ",\n  ".join(_inspect_item(item, width - 2) for item in items) + "\n]"


def _inspect_item(item: Any, width: int) -> str:
    if not isinstance(item, tuple) or len(inspect(item)) <= width:
        return inspect(item)
    lines: list[str] = [""]
    for part in map(inspect, item):
        if lines[-1] and len(lines[-1]) + len(part) + 2 > width:
            lines.append("")
        lines[-1] += f", {part}" if lines[-1] else part
    return "{" + ",\n   ".join(lines) + "}"
