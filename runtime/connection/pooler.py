"""Does a transaction pooler stand between us and the database?

It hands each transaction to whichever server connection is free, so what a session keeps is lost or, worse, somebody
else's: LISTEN, and prepared statements, whose names two processes choose alike.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from runtime.connection.database import open_connection

_ROUNDS = 5


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
            # When all is quiet it hands out the server connection that was used last, so the two meet at once. Among
            # other clients they may not meet, but each wanders from process to process.
            ours, theirs = {pid}, set[int]()
            for _ in range(_ROUNDS):
                theirs.add(await _pid(second))
                ours.add(await _pid(first))
                if len(ours) > 1 or len(theirs) > 1 or ours & theirs:
                    return True
            return False


@asynccontextmanager
async def _connected(url: str, seconds: float) -> AsyncIterator[Any]:
    connection = await open_connection(url, seconds=seconds, command_timeout=seconds, statement_cache_size=0)
    try:
        yield connection
    finally:
        connection.terminate()


async def _pid(connection: Any) -> int:
    # asyncpg sends even an unnamed statement in two parts; a transaction keeps them together.
    async with connection.transaction():
        pid: int = await connection.fetchval("select pg_backend_pid()")
        return pid
