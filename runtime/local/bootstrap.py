"""The roles and schemas that make a plain PostgreSQL database a Supabase one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from runtime.connection.addresses import DatabaseAddress
from runtime.errors import LocalStackError
from runtime.local import keys

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection: TypeAlias = Any

_LOCK: Final = 7_230_114_501
"""Advisory lock of who prepares a cluster; two at once would fail on the same role."""

_SESSION: Final = {"application_name": "agent-runtime local"}

# A superuser must not run what others have put before PostgreSQL's own functions and operators.
_OWN_NAMES_ONLY: Final = "set local search_path to pg_catalog, pg_temp"

_LOGIN_ROLES: Final = (
    "postgres",
    "authenticator",
    "supabase_auth_admin",
    "supabase_storage_admin",
    "supabase_realtime_admin",
)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """One connection for as long as the block runs.

    Raises:
        SettingsError: the URL is none of a database.
        LocalStackError: the database cannot be reached, the password is wrong, or the block left an error of the
            database alone.
    """
    try:
        connection = await asyncpg.connect(
            DatabaseAddress.parse(url).url, timeout=20, server_settings=_SESSION
        )
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise LocalStackError(f"The database cannot be reached: {error or type(error).__name__}") from error
    try:
        yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise LocalStackError(f"The database failed: {error}") from error
    finally:
        await connection.close(timeout=5)


async def prepare_cluster(url: str, *, passwords: bool = False) -> None:
    """Make the roles that are missing; those that exist stay as they are.

    Args:
        url: any database of the cluster, as a superuser.
        passwords: give the roles that may log in the well-known password; only for a cluster of our own.

    Raises:
        LocalStackError: not reached, or no superuser.
    """
    async with connected(url) as connection, connection.transaction():
        await connection.execute(_OWN_NAMES_ONLY)
        if not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user"):
            raise LocalStackError(
                "The stack must be set up by a superuser; the URL names a role that is none."
            )
        await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute("set local client_min_messages to warning")
        await connection.execute(_read("roles.sql"))
        if passwords:
            for role in _LOGIN_ROLES:
                await connection.execute(f"alter role {role} password '{keys.DB_PASSWORD}'")


async def prepare_database(url: str) -> None:
    """Give a database what one of Supabase has. One that has it already only gets the partitions of these days.

    Args:
        url: the database, as a superuser, in a cluster with the roles.

    Raises:
        LocalStackError: not reached, or the database holds something that is in the way.
    """
    async with connected(url) as connection, connection.transaction():
        await connection.execute(_OWN_NAMES_ONLY)
        await connection.execute("set local client_min_messages to warning")
        await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
        try:
            if not await connection.fetchval(
                "select to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null"
            ):
                await connection.execute(_read("bootstrap.sql"))
            elif await connection.fetchval(
                "select to_regprocedure('realtime.make_message_partitions()') is not null"
            ):
                await connection.execute("select realtime.make_message_partitions()")
        except asyncpg.PostgresError as error:
            raise LocalStackError(f"The database could not be made one of Supabase: {error}") from error


async def change_password(url: str, password: str) -> None:
    """Give the role of this URL another password, made of letters, digits, `-` and `_`.

    Raises:
        LocalStackError: not reached.
    """
    async with connected(url) as connection, connection.transaction():
        # The statement must not be kept with the password in it, neither in the log nor in anybody's statistics.
        await connection.execute(
            "set local log_statement to 'none'; set local log_min_error_statement to 'panic'"
        )
        await connection.execute(f"alter role current_user password '{password}'")


async def check_decoding(url: str) -> None:
    """Make sure that changes can be decoded from the log of a server that is not ours.

    Raises:
        LocalStackError: not reached, or `wal_level` is not logical; with the statement that mends it.
    """
    async with connected(url) as connection:
        if await connection.fetchval("show wal_level") != "logical":
            raise LocalStackError(
                "Realtime needs wal_level = logical. Run `alter system set wal_level = 'logical'` "
                "and restart PostgreSQL."
            )


def _read(name: str) -> str:
    return files("runtime.local").joinpath(name).read_text(encoding="utf-8")
