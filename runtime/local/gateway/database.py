"""A few ordinary database connections of the gateway, made when first needed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import anyio
import asyncpg

from runtime.local.gateway.session_role import lower
from runtime.local.keys import REALTIME_USER

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

# The last one: a connection that was cut in the middle of a statement and is asked for the next.
DATABASE_FAULTS: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a query raises when the database is away, or says no."""

_CONNECT_SECONDS: Final = 5.0
_SESSION: Final = {
    # Filters are compared with values as they stand in the log, so both sessions must print alike.
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "application_name": "agent-runtime gateway, realtime",
}


async def _become_ours(connection: Any) -> None:
    await lower(connection, REALTIME_USER)


class Database:
    """A pool of at most four connections.

    Args:
        url: as the owner of `realtime.messages`, who may become the roles of tokens; a superuser becomes that owner.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError: there is none to be had (DATABASE_FAULTS).
        """
        if self._pool is None:
            # Statements are not kept: tables change under a development database all the time.
            self._pool = asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=4,
                statement_cache_size=0,
                timeout=_CONNECT_SECONDS,
                init=_become_ours,
                server_settings=_SESSION,
            )
        # This neither connects nor awaits, so two simultaneous callers cannot both get here.
        pool = await self._pool
        if pool is None:
            raise asyncpg.InterfaceError("the pool is closed")
        # asyncpg leaves an unretrieved exception behind if it is cancelled while it connects.
        with anyio.CancelScope(shield=True):
            connection = await pool.acquire()
        try:
            yield connection
        finally:
            with anyio.CancelScope(shield=True):
                await pool.release(connection)

    def close(self) -> None:
        """Drop all connections at once."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None
