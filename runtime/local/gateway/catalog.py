"""The functions and tables of schema public, read once, and again when a name is not found."""

from dataclasses import dataclass
from typing import Any

import asyncpg

from runtime.local.gateway.postgrest_errors import Problem

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
select c.relname as table_name, a.attname as name,
       -- Without its modifier: a cast to varchar(5) would cut a filter's value short.
       format_type(a.atttypid, -1) as type,
       coalesce(a.attnum = any (k.conkey), false) as is_key,
       case when a.attidentity <> ''
            then format('nextval(%L)', pg_get_serial_sequence(a.attrelid::regclass::text, a.attname))
            when a.attgenerated = '' then pg_get_expr(d.adbin, d.adrelid) end as default
from pg_class c
join pg_attribute a on a.attrelid = c.oid
left join pg_constraint k on k.conrelid = c.oid and k.contype = 'p'
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
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

    def statement(self, given: frozenset[str], max_rows: int) -> str:
        """SQL that calls it with the arguments in the JSON object `$1` and returns JSON text and its rows."""
        name = f"public.{quoted(self.name)}"
        if given:
            columns = ", ".join(f"{quoted(each)} {self.arguments[each]}" for each in sorted(given))
            source = f" from json_to_record($1::json) as _ ({columns})"
        else:
            source = " from (select $1::json) as _"
        call = f"{name}({', '.join(f'{quoted(each)} => _.{quoted(each)}' for each in sorted(given))})"
        if self.shape == "rows":
            page = f"select r{source} cross join lateral {call} as r limit {max_rows}"
            return f"select coalesce(json_agg(r), '[]')::text as body, count(*) as rows from ({page}) as _"
        value = f"to_json({call})" if self.shape == "scalar" else call
        return f"select {value}::text as body, 1::bigint as rows{source}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its type and default as SQL, and whether it is part of the primary key."""

    type: str
    is_key: bool
    default: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view, with its columns in their order."""

    name: str
    columns: dict[str, Column]

    @property
    def sql(self) -> str:
        """Its name in SQL."""
        return f"public.{quoted(self.name)}"

    def column(self, name: str) -> Column:
        """The column of this name.

        Raises:
            Problem: there is none; in PostgreSQL's words, since PostgREST leaves that to it.
        """
        if name not in self.columns:
            raise Problem(400, "42703", f"column {self.name}.{name} does not exist")
        return self.columns[name]

    def check_written(self, name: str) -> None:
        """Make sure that a column to be written is there.

        Raises:
            Problem: there is none.
        """
        if name not in self.columns:
            message = f"Could not find the '{name}' column of '{self.name}' in the schema cache"
            raise Problem(400, "PGRST204", message)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The functions and tables that were read."""

    functions: dict[str, list[Function]]
    tables: dict[str, Table]

    @classmethod
    async def read(cls, connection: Any) -> "Catalog":
        """Read it from the database."""
        functions: dict[str, list[Function]] = {}
        for row in await connection.fetch(_FUNCTIONS):
            functions.setdefault(row["name"], []).append(_function(row))
        tables: dict[str, Table] = {}
        for row in await connection.fetch(_COLUMNS):
            table = tables.setdefault(row["table_name"], Table(row["table_name"], {}))
            table.columns[row["name"]] = Column(row["type"], row["is_key"], row["default"])
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


def literal(text: str) -> str:
    """The text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


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
