"""A pool of connections that reuses an idle one, or opens a new one up to its limit.

asyncpg's own pool gives a connection back in a task of its own, so that no cancellation can come in between: that is
0.1 ms of a request of 0.25 ms. Here a connection whose request ended well is kept, and any other is dropped.

A NAT or a firewall silently forgets a connection that is idle for minutes, and after a failover an old one still leads
to the old server. So a connection is checked after it has been idle for a while, and its idle time and age are bounded.
"""

import time
from dataclasses import dataclass
from typing import Any

import anyio

from runtime.connection.database import FAULTS, Connection, open_connection

__all__ = ["Connection", "Pool"]

_CHECK_AFTER_SECONDS = 20.0
_CHECK_TIMEOUT_SECONDS = 2.0
_MAX_IDLE_SECONDS = 300.0
_MAX_AGE_SECONDS = 1800.0


@dataclass(slots=True)
class _IdleConnection:
    """A connection not in use, since a time in monotonic seconds."""

    connection: Connection
    since: float


class Pool:
    """Connections to one database, opened when they are needed.

    Args:
        url: a `postgresql://` URL.
        limit: the most connections.
        first: a statement that each connection begins with.
        options: for `asyncpg.connect`.
    """

    def __init__(self, url: str, *, limit: int, first: str | None = None, **options: Any) -> None:
        self._url = url
        self._options = options
        self._first = first
        self._limit = limit
        self._free = anyio.Semaphore(limit, fast_acquire=True)
        # Each with the time of its opening.
        self._open: dict[Connection, float] = {}
        self._idle: list[_IdleConnection] = []

    @property
    def is_exhausted(self) -> bool:
        """Whether each connection is in use."""
        return self._free.value == 0

    def acquire_idle(self) -> "Connection | None":
        """Return an idle connection that needs no check, or None."""
        if not self._idle:
            return None
        last = self._idle[-1]
        if last.connection.is_closed() or time.monotonic() - last.since > _CHECK_AFTER_SECONDS:
            return None
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            # It is promised to a waiting caller.
            return None
        return self._idle.pop().connection

    async def acquire(self, *, seconds: float) -> Connection:
        """Return a connection for the caller's own use.

        Raises:
            TimeoutError: none was free, or the server did not answer, in so many seconds.
        """
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            with anyio.fail_after(seconds):
                await self._free.acquire()
        try:
            while self._idle:
                idle = self._idle.pop()
                if await self._is_fit(idle):
                    return idle.connection
                self._drop(idle.connection)
            connection = await open_connection(self._url, seconds=seconds, **self._options)
            self._open[connection] = time.monotonic()
            if self._first is not None:
                try:
                    await connection.execute(self._first, timeout=seconds)
                except BaseException:
                    self._drop(connection)
                    raise
        except BaseException:
            self._free.release()
            raise
        return connection

    def give_back(self, connection: Connection, *, is_fit: bool) -> None:
        """Keep a connection for reuse, or drop it if its request did not end well or it is old."""
        now = time.monotonic()
        if is_fit and not connection.is_closed() and now - self._open[connection] < _MAX_AGE_SECONDS:
            self._idle.append(_IdleConnection(connection, now))
            if now - self._idle[0].since > _MAX_IDLE_SECONDS:
                # The last one is reused first, so the first ones are those not needed any more.
                self._drop(self._idle.pop(0).connection)
        else:
            self._drop(connection)
        self._free.release()

    async def close(self, *, seconds: float) -> None:
        """Close every connection, those in use when they are given back; after so many seconds drop the rest."""
        with anyio.move_on_after(seconds):
            for _ in range(self._limit):
                await self._free.acquire()
            while self._idle:
                await self._idle[-1].connection.close()
                self._open.pop(self._idle.pop().connection, None)
        for connection in self._open:
            connection.terminate()
        self._open.clear()

    async def _is_fit(self, idle: _IdleConnection) -> bool:
        """Whether an idle connection can carry a request; checked with an empty query if it was idle for long."""
        connection = idle.connection
        idle_seconds = time.monotonic() - idle.since
        if connection.is_closed() or idle_seconds > _MAX_IDLE_SECONDS:
            return False
        if idle_seconds <= _CHECK_AFTER_SECONDS:
            return True
        answers = False
        try:
            with anyio.move_on_after(_CHECK_TIMEOUT_SECONDS):
                await connection.execute("select")
                answers = True
        except FAULTS:
            return False
        finally:
            if not answers:
                self._drop(connection)
                # The others have been idle for longer, so they are dead too.
                for each in self._idle:
                    self._drop(each.connection)
                self._idle.clear()
        return answers

    def _drop(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        connection.terminate()
