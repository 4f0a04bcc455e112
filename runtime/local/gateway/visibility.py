"""The parts of a changed row that a role may see: columns by grants, the row by row-level security."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runtime.local.gateway.database import Connection
from runtime.local.gateway.encoding import TypeName
from runtime.local.gateway.pgoutput import Relation
from runtime.local.gateway.subscriptions import Identity

_ACCESS: Final = """
select a.attname::text as name,
       a.atttypid::regtype::text as type,
       coalesce(a.attnum = any (k.conkey), false) as is_key,
       has_column_privilege(r.oid, a.attrelid, a.attnum, 'SELECT') as is_readable,
       c.relrowsecurity and not (r.rolsuper or r.rolbypassrls) as is_guarded
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
join pg_roles r on r.rolname = $2
left join pg_constraint k on k.conrelid = c.oid and k.contype = 'p'
where c.oid = $1
order by a.attnum
"""

_TYPES: Final = """
select t.oid, t.typname::text as name, coalesce(b.typname, t.typname)::text as base,
       e.typname::text as element, coalesce(e.typdelim, ',')::text as delimiter
from pg_type t
left join pg_type b on b.oid = t.typbasetype
left join pg_type e on e.oid = coalesce(b.typelem, t.typelem) and coalesce(b.typcategory, t.typcategory) = 'A'
where t.oid = any ($1::oid[])
"""


@dataclass(frozen=True, slots=True)
class Access:
    """The columns of one table that one role may read. `key` maps the columns of the primary key to their types."""

    key: Mapping[str, str]
    readable: frozenset[str]
    is_guarded: bool

    @property
    def refusal(self) -> str | None:
        """The error that stands in each frame instead of the row, if any."""
        if not self.key:
            return "Error 400: Bad Request, no primary key"
        if not self.key.keys() <= self.readable:
            return "Error 401: Unauthorized"
        return None


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A type under its name for clients, and how its values are written."""

    shown: str
    written: TypeName


async def read_access(connection: Connection, table_oid: int, role: str) -> Access:
    """Return what the role may read of the table now; nothing if either does not exist any more."""
    rows = await connection.fetch(_ACCESS, table_oid, role)
    return Access(
        key={row["name"]: row["type"] for row in rows if row["is_key"]},
        readable=frozenset(row["name"] for row in rows if row["is_readable"]),
        is_guarded=any(row["is_guarded"] for row in rows),
    )


async def read_types(connection: Connection, oids: set[int]) -> dict[int, ColumnType]:
    """The types with these numbers; a domain is written as the type it is made of."""
    rows = await connection.fetch(_TYPES, list(oids))
    return {
        row["oid"]: ColumnType(row["name"], TypeName(row["base"], row["element"], row["delimiter"]))
        for row in rows
    }


async def is_visible(
    connection: Connection,
    relation: Relation,
    key: Mapping[str, str],
    row: Mapping[str, str | None],
    identity: Identity,
) -> bool:
    """Whether row-level security shows this identity the row that has this primary key now.

    Raises:
        asyncpg.PostgresError: a policy raised.
    """
    names = list(key)
    conditions = " and ".join(
        f"{_quoted(name)} = ${place}::text::{key[name]}" for place, name in enumerate(names, start=1)
    )
    sql = f"select true from {_quoted(relation.schema)}.{_quoted(relation.table)} where {conditions}"
    transaction = connection.transaction(readonly=True)
    await transaction.start()
    try:
        await impersonate(connection, identity)
        return bool(await connection.fetchval(sql, *(row[name] for name in names)))
    finally:
        await transaction.rollback()


async def impersonate(connection: Connection, identity: Identity) -> None:
    """Until the transaction ends, be this role with these claims."""
    await connection.execute(
        "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)",
        identity.role, identity.claims,
    )  # fmt: skip


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
