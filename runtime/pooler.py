"""Does a transaction pooler stand between us and the database?

It hands each transaction to whichever server connection is free, so what a session keeps is lost or, worse, somebody
else's: LISTEN, and prepared statements, whose names two processes choose alike.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg


async def is_transaction_pooled(url: str, *, connect_seconds: float) -> bool:
    """Tell whether two connections can meet in one server process; without a pooler each has one to itself.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: the database was not reached.
    """
    async with _connected(url, connect_seconds) as first:
        pid = await _pid(first)
        # A pooler gives its clients process ids of its own invention.
        if pid == first.get_server_pid():
            return False
        async with _connected(url, connect_seconds) as second:
            # It hands out the server connection that was used last; where another client was quicker, `first` finds
            # itself in another process now.
            return await _pid(second) == pid or await _pid(first) != pid


@asynccontextmanager
async def _connected(url: str, seconds: float) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url, timeout=seconds, command_timeout=seconds, statement_cache_size=0)
    try:
        yield connection
    finally:
        connection.terminate()


async def _pid(connection: Any) -> int:
    # asyncpg sends even an unnamed statement in two parts; a transaction keeps them together.
    async with connection.transaction():
        pid: int = await connection.fetchval("select pg_backend_pid()")
        return pid
