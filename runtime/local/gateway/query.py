"""The query string of a table request: PostgREST's comparison operators, order and paging.

Source: https://docs.postgrest.org/en/stable/references/api/tables_views.html
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from runtime.local.gateway.catalog import Table, quoted
from runtime.local.gateway.postgrest_errors import Problem, Unserved

_OPERATORS: Final = {"eq": "=", "neq": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_PATTERNS: Final = frozenset({"like", "ilike"})
_IS: Final = {"null": "null", "true": "true", "false": "false", "unknown": "unknown", "not_null": "not null"}
_ORDER: Final = {"asc": "asc", "desc": "desc", "nullsfirst": "nulls first", "nullslast": "nulls last"}
_UNSERVED: Final = frozenset({
    "match", "imatch", "isdistinct", "fts", "plfts", "phfts", "wfts",
    "cs", "cd", "ov", "sl", "sr", "nxr", "nxl", "adj",
})  # fmt: skip
_LOGIC: Final = frozenset({"or", "and", "not.or", "not.and"})
_LIST_ITEM: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|([^,]+)')
_ESCAPED: Final = re.compile(r"\\(.)")


@dataclass
class Query:
    """A parsed query string.

    Attributes:
        selected: the columns to return, as SQL.
        conditions: SQL, with numbered parameters.
        values: the parameters, as text.
        columns: those an insert or update shall write, where it does not go by the body.
        conflict: the columns by which an insert knows rows that are there already.
    """

    selected: str = "*"
    conditions: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    limit: int | None = None
    offset: int = 0
    columns: list[str] | None = None
    conflict: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The where clause, or nothing."""
        return f" where {' and '.join(self.conditions)}" if self.conditions else ""

    @property
    def order_by(self) -> str:
        """The order, or nothing."""
        return f" order by {', '.join(self.order)}" if self.order else ""

    @property
    def has_page(self) -> bool:
        """Whether it asks for an order or a part."""
        return bool(self.order or self.offset) or self.limit is not None


def parse_query(pairs: Iterable[tuple[str, str]], table: Table, *, first: int = 1) -> Query:
    """Return a query string parsed.

    Args:
        pairs: names and values of the query string.
        first: the number of the first parameter.

    Raises:
        Problem: it asks for what is not there, or for what this gateway does not serve.
    """
    query = Query()
    for name, value in pairs:
        if name == "select":
            query.selected = _select(value, table)
        elif name == "order":
            query.order = [_order(part, table) for part in value.split(",")]
        elif name == "limit":
            query.limit = _count(name, value)
        elif name == "offset":
            query.offset = _count(name, value)
        elif name == "columns":
            query.columns = _names(value)
            for column in query.columns:
                table.check_written(column)
        elif name == "on_conflict":
            query.conflict = _names(value)
        elif name in _LOGIC or "->" in name or "." in name:
            raise Unserved(f"the filter {name}")
        else:
            kind = table.column(name).type
            query.conditions.append(_condition(quoted(name), value, kind, query.values, first))
    return query


def _names(value: str) -> list[str]:
    return [name.strip().strip('"') for name in value.split(",") if name.strip()]


def _select(value: str, table: Table) -> str:
    if any(mark in value for mark in ("(", ":", "->")):
        raise Unserved("embedding, renaming, casting or aggregating in select")
    names = _names(value)
    for name in names:
        if name != "*":
            table.column(name)
    return ", ".join("*" if name == "*" else quoted(name) for name in names) or "*"


def _order(part: str, table: Table) -> str:
    if "(" in part or "->" in part:
        raise Unserved(f"the order {part}")
    name, *words = part.split(".")
    table.column(name)
    if any(word not in _ORDER for word in words):
        raise Problem(400, "PGRST100", f'"failed to parse order ({part})" (line 1, column 1)')
    return " ".join([quoted(name), *(_ORDER[word] for word in words)])


def _count(name: str, value: str) -> int:
    if re.fullmatch("[0-9]{1,18}", value) is None:
        raise Problem(400, "PGRST100", f'"failed to parse {name} ({value})" (line 1, column 1)')
    return int(value)


def _condition(column: str, value: str, kind: str, values: list[str], first: int) -> str:
    negated = "not " if value.startswith("not.") else ""
    operator, dot, operand = value.removeprefix("not.").partition(".")

    def parameter(text: str, type_: str) -> str:
        values.append(text)
        return f"${first + len(values) - 1}::text::{type_}"

    if dot and operator in _OPERATORS:
        return f"{negated}{column} {_OPERATORS[operator]} {parameter(operand, kind)}"
    if dot and operator in _PATTERNS:
        return f"{negated}{column}::text {operator} {parameter(operand.replace('*', '%'), 'text')}"
    if dot and operator == "is" and operand in _IS:
        return f"{negated}{column} is {_IS[operand]}"
    if dot and operator == "in" and operand.startswith("(") and operand.endswith(")"):
        return f"{negated}{column} = any ({parameter(_array(operand[1:-1]), f'{kind}[]')})"
    if dot and (operator in _UNSERVED or "(" in operator):
        raise Unserved(f"the operator {operator}")
    raise Problem(
        400,
        "PGRST100",
        f'"failed to parse filter ({value})" (line 1, column 1)',
        details=f'unexpected "{value[:1]}" expecting "not" or operator (eq, gt, ...)',
    )


def _array(listed: str) -> str:
    """The items of an `in`, which may stand in quotes, as an array literal."""
    items = (_ESCAPED.sub(r"\1", quoted_) or plain for quoted_, plain in _LIST_ITEM.findall(listed))
    return "{" + ",".join('"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items) + "}"
