"""Detection of a transaction pooler between this process and the database.

Such a pooler gives each transaction any free server connection, so the state of a session is lost or, worse, another
client's: LISTEN, and prepared statements, whose names are the same in two processes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from runtime.connection.database import open_connection

_ROUNDS = 5


async def is_transaction_pooled(url: str, *, connect_seconds: float) -> bool:
    """Whether two connections can meet in one server process; without a pooler each has its own.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: the database was not reached.
    """
    async with _connected(url, connect_seconds) as first:
        pid = await _pid(first)
        # A pooler invents the process ids that it gives its clients.
        if pid == first.get_server_pid():
            return False
        async with _connected(url, connect_seconds) as second:
            # An idle pooler reuses the server connection that was used last, so the two meet at once. Beside other
            # clients they may not meet, but each moves from process to process.
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
