"""What does the query string of a table request ask for? PostgREST's comparison operators, order and paging.

Source: https://docs.postgrest.org/en/stable/references/api/tables_views.html
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from runtime.local.gateway.catalog import quoted
from runtime.local.gateway.problems import Problem

_OPERATORS = {
    "eq": "=", "neq": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "like": "like", "ilike": "ilike",
}  # fmt: skip
_IS = {"null": "null", "true": "true", "false": "false", "unknown": "unknown", "not_null": "not null"}
_CONTROLS = frozenset({"select", "order", "limit", "offset", "columns", "on_conflict"})
_LIST_ITEM = re.compile(r'"((?:[^"\\]|\\.)*)"|([^,]+)')


@dataclass
class Query:
    """A parsed query string.

    Attributes:
        columns: what is selected; empty means everything.
        conditions: SQL, with numbered parameters.
        values: the parameters, as text.
    """

    columns: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    limit: int | None = None
    offset: int | None = None

    @property
    def where(self) -> str:
        """The where clause, or nothing."""
        return f" where {' and '.join(self.conditions)}" if self.conditions else ""

    @property
    def tail(self) -> str:
        """Order and paging."""
        order = f" order by {', '.join(self.order)}" if self.order else ""
        limit = f" limit {self.limit}" if self.limit is not None else ""
        offset = f" offset {self.offset}" if self.offset is not None else ""
        return f"{order}{limit}{offset}"

    @property
    def selected(self) -> str:
        """The columns as SQL."""
        return ", ".join(quoted(name) for name in self.columns) if self.columns else "*"


def parse_query(
    pairs: Iterable[tuple[str, str]], table: str, columns: dict[str, str], *, first: int = 1
) -> Query:
    """Return what a query string asks of a table.

    Args:
        pairs: names and values of the query string.
        columns: the table's columns and their types.
        first: the number of the first parameter.

    Raises:
        Problem: it asks for what is not there, or for what this gateway does not serve.
    """
    query = Query()
    for name, value in pairs:
        if name == "select":
            query.columns = _select(value, table, columns)
        elif name == "order":
            query.order = [_order(part, table, columns) for part in value.split(",")]
        elif name in ("limit", "offset"):
            setattr(query, name, _count(name, value))
        elif name in ("or", "and", "not.or", "not.and") or "->" in name:
            raise _unserved(f"the filter {name}")
        elif name not in _CONTROLS:
            _known(name, table, columns)
            query.conditions.append(_condition(name, value, columns[name], query.values, first))
    return query


def _select(value: str, table: str, columns: dict[str, str]) -> list[str]:
    if "(" in value or ":" in value or "->" in value:
        raise _unserved("embedding, renaming or casting in select")
    names = [name.strip() for name in value.split(",") if name.strip() not in ("", "*")]
    for name in names:
        _known(name, table, columns)
    return [] if "*" in value else names


def _order(part: str, table: str, columns: dict[str, str]) -> str:
    name, *words = part.split(".")
    _known(name, table, columns)
    known = {"asc": "asc", "desc": "desc", "nullsfirst": "nulls first", "nullslast": "nulls last"}
    if any(word not in known for word in words):
        raise Problem(400, "PGRST100", f'"failed to parse order ({part})" (line 1, column 1)')
    return " ".join([quoted(name), *(known[word] for word in words)])


def _count(name: str, value: str) -> int:
    if not value.isdigit():
        raise Problem(400, "PGRST100", f'"failed to parse {name} ({value})" (line 1, column 1)')
    return int(value)


def _condition(name: str, value: str, kind: str, values: list[str], first: int) -> str:
    operator, dot, operand = value.partition(".")
    negated = ""
    if operator == "not":
        negated = "not "
        operator, dot, operand = operand.partition(".")
    column = quoted(name)

    def parameter(text: str, type_: str) -> str:
        values.append(text)
        return f"${first + len(values) - 1}::text::{type_}"

    if dot and operator in _OPERATORS:
        if operator in ("like", "ilike"):
            return f"{negated}{column}::text {_OPERATORS[operator]} {parameter(operand.replace('*', '%'), 'text')}"
        return f"{negated}{column} {_OPERATORS[operator]} {parameter(operand, kind)}"
    if dot and operator == "is" and operand in _IS:
        return f"{negated}{column} is {_IS[operand]}"
    if dot and operator == "in" and operand.startswith("(") and operand.endswith(")"):
        items = [(a.replace('\\"', '"') or b) for a, b in _LIST_ITEM.findall(operand[1:-1])]
        listed = ", ".join(parameter(item, kind) for item in items)
        return f"{negated}{column} in ({listed})" if items else "false"
    if dot and operator in (
        "fts",
        "plfts",
        "phfts",
        "wfts",
        "cs",
        "cd",
        "ov",
        "sl",
        "sr",
        "nxr",
        "nxl",
        "adj",
        "match",
    ):
        raise _unserved(f"the operator {operator}")
    raise Problem(
        400,
        "PGRST100",
        f'"failed to parse filter ({value})" (line 1, column 1)',
        details=f'unexpected "{value[:1]}" expecting "not" or operator (eq, gt, ...)',
    )


def _known(name: str, table: str, columns: dict[str, str]) -> None:
    if name not in columns:
        raise Problem(400, "42703", f"column {table}.{name} does not exist")


def _unserved(what: str) -> Problem:
    return Problem(
        501, "LOCAL501", f"{what} is not served by this local gateway: use `supabase start` for it"
    )
