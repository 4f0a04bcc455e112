"""The role of a gateway connection: one without privileges of its own, however it logged in."""

from typing import Any, Final

_BECOME: Final = """
select case when r.rolsuper and exists (select from pg_catalog.pg_roles o where o.rolname = $1)
            then pg_catalog.set_config('session_authorization', $1, false) end
from pg_catalog.pg_roles r where r.rolname = session_user
"""

MAY_BECOME: Final = """
select exists (
    select from pg_catalog.pg_roles r
    where r.rolname = $1 and pg_catalog.pg_has_role('authenticator', r.oid, 'MEMBER') and not r.rolsuper
)
"""
"""The query whether a token may name a role: `authenticator` must be a member of it, as with PostgREST."""


async def lower(connection: Any, role: str) -> None:
    """Take a superuser's rights from a connection for good: from now on it acts as if `role` had logged in.

    Setting the role for one transaction is not enough: `set role none` gives a superuser everything back.
    """
    await connection.execute("set search_path to pg_catalog, pg_temp")
    await connection.fetchval(_BECOME, role)
    await connection.execute("reset search_path")
