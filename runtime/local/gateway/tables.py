"""Statements for requests on a table: select, insert, update and delete, as in PostgREST."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from runtime.local.gateway.catalog import Table, literal, quoted
from runtime.local.gateway.postgrest_errors import Problem, Unserved
from runtime.local.gateway.preferences import Preferences
from runtime.local.gateway.query import Query, parse_query

MAX_ROWS: Final = 1000
"""As many rows a read returns at most: `max_rows` in the `config.toml` of a Supabase project."""


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL that returns one row: `body` is JSON text, `rows` how many it holds, `total` how many there are."""

    sql: str
    values: Sequence[str] = ()


def select(query: Query, table: Table, preferences: Preferences) -> Statement:
    """Read a page of rows, and count all where that is preferred."""
    limit = MAX_ROWS if query.limit is None else min(query.limit, MAX_ROWS)
    page = f"select {query.selected} from {table.sql}{query.where}{query.order_by} limit {limit} offset {query.offset}"
    total = f"(select count(*) from {table.sql}{query.where})" if preferences.wants_count else "null::bigint"
    sql = f"select coalesce(json_agg(r), '[]')::text as body, count(*) as rows, {total} as total from ({page}) r"
    return Statement(sql, query.values)


def insert(pairs: Sequence[tuple[str, str]], table: Table, body: str, preferences: Preferences) -> Statement:
    """Insert one row or several; those that are there already may be merged or left."""
    query = parse_query(pairs, table)
    if query.conditions or query.has_page:
        raise Unserved("a filter, order or limit on an insert")
    given = _parsed(body)
    rows = given if isinstance(given, list) else [given]
    names = query.columns if query.columns is not None else _names(rows, table)
    listed = ", ".join(map(quoted, names))
    source = f"select {listed} from json_populate_recordset(null::{table.sql}, $1::json) _"
    if preferences.fills_defaults:
        source = f"select {listed} from {_rows_with_defaults(table, names)}"
    if not rows:
        source, listed = "select where false", ""
    elif not names:
        source = "default values"
    into = f"insert into {table.sql}{f' ({listed})' if listed else ''} {source}"
    into += _on_conflict(table, names, query.conflict, preferences.resolution)
    return _writing(into, query, preferences, [body if isinstance(given, list) else f"[{body}]"])


def update(pairs: Sequence[tuple[str, str]], table: Table, body: str, preferences: Preferences) -> Statement:
    """Set the columns of the body in all rows that the filters leave."""
    query = _restricted(pairs, table, "UPDATE", first=2)
    given = _parsed(body)
    names = query.columns if query.columns is not None else _names([given], table)
    listed = ", ".join(map(quoted, names))
    if not names:
        return Statement("select '[]' as body, 0::bigint as rows, null::bigint as total")
    change = (
        f"update {table.sql} set ({listed}) = "
        f"(select {listed} from json_populate_record(null::{table.sql}, $1::json)){query.where}"
    )
    return _writing(change, query, preferences, [body, *query.values])


def delete(pairs: Sequence[tuple[str, str]], table: Table, preferences: Preferences) -> Statement:
    """Delete all rows that the filters leave."""
    query = _restricted(pairs, table, "DELETE")
    return _writing(f"delete from {table.sql}{query.where}", query, preferences, query.values)


def _restricted(pairs: Sequence[tuple[str, str]], table: Table, verb: str, first: int = 1) -> Query:
    query = parse_query(pairs, table, first=first)
    if query.has_page:
        raise Unserved("order, limit or offset on a write")
    if not query.conditions:
        # Supabase loads `safeupdate` for the role that its REST API logs in as.
        raise Problem(400, "21000", f"{verb} requires a WHERE clause")
    return query


def _writing(change: str, query: Query, preferences: Preferences, values: list[str]) -> Statement:
    # Without `return=representation` nothing is returned, so that the right to write is enough.
    returning, body = "1", "'[]'"
    if preferences.wants_rows:
        returning, body = query.selected, "coalesce(json_agg(r), '[]')::text"
    total = "count(*)" if preferences.wants_count else "null::bigint"
    sql = f"with r as ({change} returning {returning}) select {body} as body, count(*) as rows, {total} as total from r"
    # Statements that take nothing from the body must not get it: parameters need a type.
    return Statement(sql, values if "$1" in sql else ())


def _rows_with_defaults(table: Table, names: Sequence[str]) -> str:
    columns = ((name, table.columns[name].default) for name in names)
    members = ", ".join(f"{literal(name)}, {default}" for name, default in columns if default)
    return (
        f"json_array_elements($1::json) e, "
        f"json_populate_record(null::{table.sql}, (jsonb_build_object({members}) || e::jsonb)::json) _"
    )


def _on_conflict(table: Table, names: Sequence[str], conflict: Sequence[str], resolution: str | None) -> str:
    keys = conflict or [name for name, column in table.columns.items() if column.is_key]
    if resolution is None or not keys:
        return ""
    target = f" on conflict ({', '.join(map(quoted, keys))})"
    if resolution == "ignore-duplicates" or not names:
        return f"{target} do nothing"
    return (
        f"{target} do update set {', '.join(f'{quoted(name)} = excluded.{quoted(name)}' for name in names)}"
    )


def _parsed(body: str) -> Any:
    try:
        # Only the names are looked at: PostgreSQL reads the numbers, whose digits Python may have no room for.
        return json.loads(body, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        raise Problem(400, "PGRST102", "Empty or invalid json") from None


def _names(rows: Sequence[Any], table: Table) -> list[str]:
    """The columns that all rows name alike."""
    if not all(isinstance(row, dict) for row in rows):
        raise Problem(400, "PGRST102", "Empty or invalid json")
    names = list(rows[0]) if rows else []
    if any(row.keys() != rows[0].keys() for row in rows):
        raise Problem(400, "PGRST102", "All object keys must match")
    for name in names:
        table.check_written(name)
    return names
