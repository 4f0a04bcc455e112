"""Subscriptions to rows, checked in the database as Realtime does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import asyncpg

from runtime.local.gateway.bindings import Binding, Condition, Event
from runtime.local.gateway.database import Connection
from runtime.local.gateway.encoding import parse_array
from runtime.local.gateway.session_role import MAY_BECOME

PUBLICATION: Final = "supabase_realtime"
_UNABLE: Final = "Unable to subscribe to changes with given parameters."
_MAX_IN_VALUES: Final = 100
_COMPARISONS: Final = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_PATTERNS: Final = {"like": "like", "ilike": "ilike", "match": "~", "imatch": "~*"}
_OPERATOR_NAMES: Final = {"like": "~~", "ilike": "~~", "match": "~", "imatch": "~*"}
_KEYWORDS: Final = ("null", "true", "false", "unknown")
_NUMERIC: Final = frozenset({"numeric", "real", "double precision"})

_TABLES: Final = """
select c.oid
from pg_publication_tables t
join pg_namespace n on n.nspname = t.schemaname
join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
where t.pubname = $1 and t.schemaname like $2 escape '' and t.tablename like $3 escape ''
"""

_HAS_OPERATOR: Final = """
select exists (
    select from pg_operator where oprname = $1 and oprleft = $2::text::regtype
      and (oprname = '~~' or (oprright = oprleft and oprresult = 'boolean'::regtype))
)
"""

_COLUMNS: Final = """
select attname::text as name, atttypid::regtype::text as type
from pg_attribute
where attrelid = $1 and attnum > 0 and not attisdropped
  and has_column_privilege($2::text::regrole, attrelid, attnum, 'SELECT')
"""


class SubscriptionRefused(Exception):
    """The subscription is refused; the text is for the client."""


@dataclass(frozen=True, slots=True)
class EqualityTest:
    """One condition on equality, with its values as PostgreSQL prints them in that column's type."""

    column: str
    values: frozenset[str | Decimal]
    is_numeric: bool
    wants_equal: bool

    def passes(self, row: Mapping[str, str | None]) -> bool:
        """Whether a row passes. NULL passes nothing, nor does a column that a DELETE did not log."""
        text = row.get(self.column)
        if text is None:
            return False
        value = _number(text) if self.is_numeric else text
        return (value in self.values) is self.wants_equal


@dataclass(frozen=True, slots=True)
class Comparison:
    """A condition that the column's type decides, such as order or a pattern: the database is asked for each row."""

    column: str
    sql: str
    values: tuple[str, ...]
    sees_null: bool = False

    async def passes(self, connection: Connection, row: Mapping[str, str | None]) -> bool:
        """Whether a row passes; an unlogged column never does, and NULL where the condition is about it."""
        if self.column not in row:
            return False
        text = row[self.column]
        if text is None and not self.sees_null:
            return False
        return bool(await connection.fetchval(self.sql, text, *self.values))


@dataclass(frozen=True, slots=True)
class Identity:
    """The reader of a channel: the role and the claims of its token, the claims as JSON text."""

    role: str
    claims: str


@dataclass(frozen=True, slots=True)
class TableSubscription:
    """One binding's subscription to one table."""

    binding_id: int
    table_oid: int
    event: Event
    tests: tuple[EqualityTest, ...]
    comparisons: tuple[Comparison, ...]
    select: frozenset[str] | None
    identity: Identity

    def wants(self, kind: str) -> bool:
        """Whether the binding asked for changes of this kind."""
        return self.event in ("*", kind)

    async def passes(self, connection: Connection, row: Mapping[str, str | None]) -> bool:
        """Whether a row passes all conditions of the filter."""
        if not all(test.passes(row) for test in self.tests):
            return False
        for comparison in self.comparisons:
            if not await comparison.passes(connection, row):
                return False
        return True


async def resolve(
    connection: Connection, bindings: Iterable[Binding], identity: Identity
) -> list[TableSubscription]:
    """Look up the tables and check the filters of all bindings of one channel: all of them or none.

    Raises:
        SubscriptionRefused: with the server's text.
        OSError, asyncpg.PostgresError: the database could not be asked.
    """
    found: list[TableSubscription] = []
    for binding in bindings:
        try:
            if not await connection.fetchval(MAY_BECOME, identity.role):
                raise asyncpg.UndefinedObjectError(f'role "{identity.role}" does not exist')
            subscriptions = await _resolve_one(connection, binding, identity)
        except (asyncpg.DataError, asyncpg.RaiseError, asyncpg.SyntaxOrAccessError) as error:
            raise SubscriptionRefused(
                f"{_UNABLE} An exception happened so please check your connect parameters: "
                f"{binding.describe()}. Exception: {describe_error(error)}"
            ) from error
        if not subscriptions:
            raise SubscriptionRefused(
                f"{_UNABLE} Please check Realtime is enabled for the given connect parameters: "
                f"{binding.describe()}"
            )
        found += subscriptions
    return found


async def _resolve_one(
    connection: Connection, binding: Binding, identity: Identity
) -> list[TableSubscription]:
    names = ["%" if name == "*" else name for name in (binding.schema, binding.table)]
    found: list[TableSubscription] = []
    for table in await connection.fetch(_TABLES, PUBLICATION, *names):
        rows = await connection.fetch(_COLUMNS, table["oid"], identity.role)
        types: dict[str, str] = {row["name"]: row["type"] for row in rows}
        read = [await _read(connection, condition, types) for condition in binding.conditions]
        tests = tuple(each for each in read if isinstance(each, EqualityTest))
        comparisons = tuple(each for each in read if isinstance(each, Comparison))
        for name in binding.select or ():
            if name not in types:
                raise _raised(f"invalid column for select {name}")
        select = None if binding.select is None else frozenset(binding.select)
        found.append(
            TableSubscription(binding.id, table["oid"], binding.event, tests, comparisons, select, identity)
        )
    return found


async def _read(
    connection: Connection, condition: Condition, types: Mapping[str, str]
) -> EqualityTest | Comparison:
    kind = types.get(condition.column)
    if kind is None:
        raise _raised(f"invalid column for filter {condition.column}")
    if condition.operator == "is":
        return _read_is(condition, kind)
    if condition.operator in _PATTERNS:
        return await _read_pattern(connection, condition, kind)
    # The type's own input and output decide equality: ' 7' is 7, and 't' is true.
    if condition.operator == "in":
        listed = f"select format('%s', $1::text::{kind}[])"
        texts = [
            text
            for text in parse_array(await connection.fetchval(listed, condition.value))
            if text is not None
        ]
        if len(texts) > _MAX_IN_VALUES:
            raise _raised(f"too many values for `in` filter. Maximum {_MAX_IN_VALUES}")
    else:
        texts = [await connection.fetchval(f"select format('%s', $1::text::{kind})", condition.value)]
    if condition.operator == "isdistinct":
        words = "is not distinct from" if condition.negated else "is distinct from"
        sql = f"select $1::text::{kind} {words} $2::text::{kind}"
        return Comparison(condition.column, sql, (condition.value,), sees_null=True)
    if symbol := _COMPARISONS.get(condition.operator):
        return _compared(condition, kind, symbol)
    is_numeric = kind in _NUMERIC
    values: frozenset[str | Decimal] = frozenset(map(_number, texts) if is_numeric else texts)
    return EqualityTest(
        condition.column, values, is_numeric, (condition.operator != "neq") is not condition.negated
    )


def _compared(condition: Condition, kind: str, symbol: str) -> Comparison:
    negation = "not " if condition.negated else ""
    sql = f"select {negation}$1::text::{kind} {symbol} $2::text::{kind}"
    return Comparison(condition.column, sql, (condition.value,))


def _read_is(condition: Condition, kind: str) -> Comparison:
    keyword = condition.value
    if keyword not in _KEYWORDS:
        raise _raised("invalid value for is filter: must be null, true, false, or unknown")
    if keyword != "null" and kind != "boolean":
        raise _raised(f"is {keyword} filter requires a boolean column, got {kind}")
    negation = "not " if condition.negated else ""
    return Comparison(condition.column, f"select $1::text::{kind} is {negation}{keyword}", (), sees_null=True)


async def _read_pattern(connection: Connection, condition: Condition, kind: str) -> Comparison:
    operator = condition.operator
    if not await connection.fetchval(_HAS_OPERATOR, _OPERATOR_NAMES[operator], kind):
        raise _raised(f"operator {operator} requires a text-compatible column type, got {kind}")
    if operator in ("match", "imatch"):
        try:
            await connection.fetchval("select '' ~ $1::text", condition.value)
        except asyncpg.PostgresError as error:
            raise _raised(f"invalid regular expression for {operator} filter: {error}") from error
    return _compared(condition, kind, _PATTERNS[operator])


def _number(text: str) -> str | Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


def _raised(message: str) -> asyncpg.RaiseError:
    """Return the error of the server's trigger, so that both kinds of refusal look the same."""
    error: asyncpg.RaiseError = asyncpg.RaiseError(message)
    return error


def describe_error(error: Any) -> str:
    """A database error as Postgrex prints it: ERROR 22P02 (invalid_text_representation) invalid input …"""
    name = type(error).__name__.removesuffix("Error")
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
    if isinstance(error, asyncpg.RaiseError):
        snake = "raise_exception"
    return f"ERROR {error.sqlstate} ({snake}) {error}"
