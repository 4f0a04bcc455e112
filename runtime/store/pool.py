"""Which connection carries a request? One that rests, or a new one while there are few enough.

asyncpg's own pool hands a connection back in a task of its own, so that no cancellation can come in between: that is
0.1 ms of a request of 0.25 ms. Here one that is as good as before is laid aside, and any other is dropped.
"""

from typing import Any, TypeAlias

import anyio
import asyncpg

Connection: TypeAlias = "asyncpg.Connection[Any]"


class Pool:
    """Connections to one database, opened when they are needed.

    Args:
        url: a `postgresql://` URL.
        limit: how many at most.
        options: for `asyncpg.connect`.
    """

    def __init__(self, url: str, *, limit: int, **options: Any) -> None:
        self._url = url
        self._options = options
        self._limit = limit
        self._free = anyio.Semaphore(limit, fast_acquire=True)
        self._open: set[Connection] = set()
        self._resting: list[Connection] = []

    def acquire_resting(self) -> "Connection | None":
        """A connection that nobody else uses, if one rests."""
        if not self._resting or self._resting[-1].is_closed():
            return None
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            # It has been promised to somebody who waits.
            return None
        return self._resting.pop()

    async def acquire(self, *, seconds: float) -> Connection:
        """A connection that nobody else uses.

        Raises:
            TimeoutError: there was none in so many seconds, or the server did not let us in in time.
        """
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            with anyio.fail_after(seconds):
                await self._free.acquire()
        try:
            while self._resting:
                connection = self._resting.pop()
                if not connection.is_closed():
                    return connection
                self._open.discard(connection)
            connection = await asyncpg.connect(self._url, timeout=seconds, **self._options)
        except BaseException:
            self._free.release()
            raise
        self._open.add(connection)
        return connection

    def give_back(self, connection: Connection, *, is_fit: bool) -> None:
        """Let it rest; or drop it, when what it carried did not come to its end."""
        if is_fit and not connection.is_closed():
            self._resting.append(connection)
        else:
            self._open.discard(connection)
            connection.terminate()
        self._free.release()

    async def close(self, *, seconds: float) -> None:
        """Close every connection, those in use when they are given back; after so many seconds drop what is left."""
        with anyio.move_on_after(seconds):
            for _ in range(self._limit):
                await self._free.acquire()
            while self._resting:
                await self._resting[-1].close()
                self._open.discard(self._resting.pop())
        for connection in self._open:
            connection.terminate()
        self._open.clear()
