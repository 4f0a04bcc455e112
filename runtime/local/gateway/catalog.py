"""Which functions and tables of schema public are there? Read once, and again when something is not found."""

from dataclasses import dataclass
from typing import Any

import asyncpg

_FUNCTIONS = """
select p.proname as name, p.proretset as is_set, p.provolatile = 'v' as is_volatile,
       t.typname as returns, t.typtype as kind, p.pronargdefaults as defaults,
       coalesce(p.proargnames[1:p.pronargs], '{}') as names,
       array(select format_type(a, null) from unnest(p.proargtypes) with ordinality as u (a, n) order by n) as types,
       coalesce(p.proargmodes @> '{t}', false) as returns_table
from pg_proc p join pg_type t on t.oid = p.prorettype
where p.pronamespace = 'public'::regnamespace and p.prokind = 'f'
"""
_COLUMNS = """
select c.relname as table_name, a.attname as name, format_type(a.atttypid, a.atttypmod) as type
from pg_class c join pg_attribute a on a.attrelid = c.oid
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v', 'm', 'p', 'f')
  and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""


@dataclass(frozen=True, slots=True)
class Function:
    """A function that can be called by name and named arguments.

    Attributes:
        arguments: their types by name.
        required: those without a default.
        shape: how its result becomes JSON: void, scalar or rows.
    """

    name: str
    arguments: dict[str, str]
    required: frozenset[str]
    shape: str
    is_volatile: bool

    def statement(self, given: frozenset[str]) -> str:
        """SQL that calls it with the arguments in the JSON object `$1` and returns one text."""
        name = f"public.{quoted(self.name)}"
        source = ""
        if given:
            columns = ", ".join(f"{quoted(each)} {self.arguments[each]}" for each in sorted(given))
            source = f" from json_to_record($1::json) as _ ({columns})"
        else:
            source = " from (select $1::json) as _"
        call = f"{name}({', '.join(f'{quoted(each)} => _.{quoted(each)}' for each in sorted(given))})"
        if self.shape == "rows":
            return f"select coalesce(json_agg(r), '[]')::text{source} cross join lateral {call} as r"
        if self.shape == "json":
            return f"select {call}::text{source}"
        if self.shape == "void":
            return f"select {call}::text{source}"
        return f"select to_json({call})::text{source}"


@dataclass(frozen=True, slots=True)
class Catalog:
    """What there is."""

    functions: dict[str, list[Function]]
    tables: dict[str, dict[str, str]]

    @classmethod
    async def read(cls, connection: Any) -> "Catalog":
        """Read it from the database."""
        functions: dict[str, list[Function]] = {}
        for row in await connection.fetch(_FUNCTIONS):
            functions.setdefault(row["name"], []).append(_function(row))
        tables: dict[str, dict[str, str]] = {}
        for row in await connection.fetch(_COLUMNS):
            tables.setdefault(row["table_name"], {})[row["name"]] = row["type"]
        return cls(functions, tables)

    def function(self, name: str, given: frozenset[str]) -> Function | None:
        """The one of this name that takes just these arguments, or nothing."""
        for function in self.functions.get(name, []):
            if function.required <= given <= function.arguments.keys():
                return function
        return None


def quoted(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _function(row: asyncpg.Record) -> Function:
    names, types = row["names"], row["types"]
    required = len(names) - row["defaults"]
    shape = "scalar"
    if row["is_set"] or row["returns_table"]:
        shape = "rows"
    elif row["returns"] in ("json", "jsonb"):
        shape = "json"
    elif row["returns"] == "void":
        shape = "void"
    return Function(
        row["name"],
        dict(zip(names, types, strict=True)),
        frozenset(names[:required]),
        shape,
        row["is_volatile"],
    )
