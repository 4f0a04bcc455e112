"""How are messages reached over a direct connection? Through asyncpg: the fast path."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import asyncpg
from asyncpg import exceptions as pg

from runtime.errors import (
    Duplicate,
    MigrationMissing,
    Refused,
    SettingsError,
    StoreError,
    StoreUnavailable,
    Unauthorized,
)  # fmt: skip
from runtime.store import FUNCTIONS, MIGRATION_CURE, Store
from runtime.values import decode

_log = logging.getLogger("runtime.store")

_STATEMENTS = {
    function: {name: f"{name} => ${{}}::{kind}" for name, kind in arguments.items()}
    for function, arguments in FUNCTIONS.items()
}
_POOLER_PORT = 6543
_LOST_STATEMENTS = (pg.DuplicatePreparedStatementError, pg.InvalidSQLStatementNameError)
_AWAY = (
    OSError,
    TimeoutError,
    pg.PostgresConnectionError,
    pg.CannotConnectNowError,
    pg.TooManyConnectionsError,
    pg.AdminShutdownError,
    pg.CrashShutdownError,
    pg.InterfaceError,
    pg.InternalClientError,
)
_NO_ENTRY = (pg.InvalidAuthorizationSpecificationError, pg.InvalidCatalogNameError)
_NO_SCHEMA = (pg.UndefinedFunctionError, pg.InvalidSchemaNameError, pg.UndefinedTableError)


class PostgresStore(Store):
    """Messages over a PostgreSQL connection pool.

    Args:
        url: a `postgresql://` URL; through a transaction pooler no prepared statements are used.
        connections: how many connections at most.
        request_seconds: how long one request may take.

    Raises:
        SettingsError: `url` is no PostgreSQL URL.
    """

    def __init__(self, url: str, *, connections: int = 4, request_seconds: float = 15) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("postgresql", "postgres"):
            raise SettingsError(
                "DATABASE_URL must begin with postgresql://, as in postgresql://user:password@host/db."
            )
        self._url = _without_own_parameters(url)
        self._place = f"{parts.hostname or 'localhost'}:{parts.port or 5432}"
        self._connections = connections
        self._request_seconds = request_seconds
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening = anyio.Lock()
        self._prepares = True
        if parts.port == _POOLER_PORT or parse_qs(parts.query).get("pgbouncer") == ["true"]:
            self._stop_preparing("the URL names one")

    @property
    def place(self) -> str:
        """The database's host and port."""
        return self._place

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Call one SQL function once; see `Store.call`."""
        templates = _STATEMENTS[function]
        named = ", ".join(templates[name].format(place) for place, name in enumerate(arguments, start=1))
        statement = f"select public.{function}({named})"
        try:
            return decode(await self._fetch(statement, arguments))
        except StoreError as error:
            if not isinstance(error.__cause__, _LOST_STATEMENTS):
                raise
        self._stop_preparing("it lost a prepared statement")
        await self.close()
        return decode(await self._fetch(statement, arguments))

    async def close(self) -> None:
        """Close the pool, at once if it does not close by itself within a second."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(1) as scope:
                await pool.close()
            if scope.cancelled_caught:
                pool.terminate()

    async def _fetch(self, statement: str, arguments: Mapping[str, Any]) -> str:
        async with self._own_errors(sent=False):
            pool = await self._open()
            connection = await pool.acquire(timeout=self._request_seconds)
        try:
            async with self._own_errors(sent=True):
                answer: str = await connection.fetchval(
                    statement, *arguments.values(), timeout=self._request_seconds
                )
                return answer
        finally:
            with anyio.CancelScope(shield=True), suppress(*_AWAY):
                # A connection that breaks only now has given its answer.
                await pool.release(connection)

    async def _open(self) -> "asyncpg.Pool[Any]":
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=self._connections,
                    max_inactive_connection_lifetime=0,
                    statement_cache_size=100 if self._prepares else 0,
                    timeout=self._request_seconds,
                    # Nothing is ever set for a session, and a reset would cost every call a round trip.
                    reset=_leave_as_it_is,
                    server_settings={"application_name": "agent-runtime"},
                )
            return self._pool

    def _stop_preparing(self, why: str) -> None:
        if self._prepares:
            self._prepares = False
            _log.info(
                "%s is a transaction pooler (%s): working without prepared statements, and NOTIFY cannot "
                "be heard through it. A direct connection or a session pooler is faster.",
                self._place,
                why,
            )

    @asynccontextmanager
    async def _own_errors(self, *, sent: bool) -> AsyncIterator[None]:
        """Map asyncpg's errors to ours, in this one place.

        Args:
            sent: whether the request may have reached the database.
        """
        try:
            yield
        except _NO_ENTRY as error:
            raise Unauthorized(
                f"The database at {self._place} did not let us in: {error}. Check the user, the password and the "
                "database name in DATABASE_URL.",
                code=error.sqlstate,
            ) from error
        except _NO_SCHEMA as error:
            raise MigrationMissing(
                f"The database at {self._place} lacks the runtime's schema ({error}). {MIGRATION_CURE}",
                code=error.sqlstate,
            ) from error
        except _AWAY as error:
            raise StoreUnavailable(
                f"The database at {self._place} could not be reached: {error or type(error).__name__}.",
                code=getattr(error, "sqlstate", None),
                maybe_applied=sent and not isinstance(error, pg.CannotConnectNowError),
            ) from error
        except pg.InsufficientPrivilegeError as error:
            raise Unauthorized(
                f"The role in DATABASE_URL may not do this: {error}. Use the role postgres or service_role.",
                code=error.sqlstate,
            ) from error
        except pg.PostgresError as error:
            raise _refusal(error) from error


async def _leave_as_it_is(_: object) -> None:
    """Reset nothing."""


def _refusal(error: pg.PostgresError) -> StoreError:
    """The database's no in our words: its message and its hint."""
    hint = getattr(error, "hint", None)
    text = f"{error.args[0] if error.args else error}. {hint}" if hint else str(error)
    kind = Duplicate if error.sqlstate == "23505" and "dedup_key" in text else Refused
    return kind(text, code=error.sqlstate)


def _without_own_parameters(url: str) -> str:
    """The URL without `pgbouncer=true`, which other clients know and the server does not."""
    parts = urlsplit(url)
    kept = [pair for pair in parts.query.split("&") if pair and not pair.startswith("pgbouncer=")]
    return parts._replace(query="&".join(kept)).geturl()
