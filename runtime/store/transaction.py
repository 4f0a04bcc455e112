"""Transactions for statements of the user's own, on a connection of a pool."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, cast

import anyio
import asyncpg
from asyncpg.pool import PoolConnectionProxy

from runtime.connection.database import FAULTS, Connection
from runtime.store.pool import Pool

_RELEASE_SECONDS = 1.0
# What a handler may have left behind in the session, for the next transaction on the connection.
_RESET: Final = (
    "close all; set session authorization default; reset all; unlisten *; discard temp; "
    "select pg_advisory_unlock_all(); set default_transaction_isolation to 'read committed'"
)


class PostgresTransaction:
    """One transaction, in isolation level read committed, which the stream's functions need.

    Args:
        connection: carries nothing else until it ends.
        pool: where the connection goes then.
        request_seconds: how long a statement of the runtime's own may take.
        keeps_session: whether the connection has a session of its own, as it has not behind a transaction pooler.

    Attributes:
        connection: the connection for the user, dead as soon as `lock_out` was called: another one has it by then.
    """

    def __init__(
        self, connection: Connection, pool: Pool, request_seconds: float, *, keeps_session: bool
    ) -> None:
        self._own = connection
        self._pool = pool
        self._seconds = request_seconds
        self._keeps_session = keeps_session
        # As asyncpg's own pool does it.
        self._proxy = PoolConnectionProxy(cast(Any, None), connection)
        self.connection = cast(Connection, self._proxy)
        self._transaction = connection.transaction(isolation="read_committed")
        self._is_over = False

    async def begin(self, idle_seconds: float) -> None:
        """Begin. Local to the transaction, so that it holds behind a transaction pooler too."""
        with anyio.fail_after(self._seconds):
            await self._transaction.start()
            await self._own.execute(
                f"set local idle_in_transaction_session_timeout = {max(1, int(idle_seconds * 1000))}"
            )

    @property
    def is_open(self) -> bool:
        """Whether it goes on: the user may have ended it by a statement."""
        return not self._own.is_closed() and self._own.is_in_transaction()

    def lock_out(self) -> None:
        """Let the user run nothing more on the connection."""
        self._proxy._detach()

    async def fetch_value(self, statement: str, arguments: Iterable[Any]) -> Any:
        """Return the value of a statement of the runtime's own."""
        return await self._own.fetchval(statement, *arguments, timeout=self._seconds)

    async def commit(self) -> None:
        """Commit, and give the connection back.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: it may have been committed or not.
        """
        try:
            with anyio.fail_after(self._seconds):
                await self._transaction.commit()
        except BaseException:
            self.drop()
            raise
        await self._give_back()

    async def roll_back(self) -> None:
        """Roll back, and give the connection back. Nothing to do where the transaction is over."""
        if self._is_over:
            return
        self.lock_out()
        with anyio.move_on_after(_RELEASE_SECONDS, shield=True), suppress(*FAULTS):
            await self._transaction.rollback()
            await self._give_back()
            return
        self.drop()

    def drop(self) -> None:
        """Close the connection, which rolls back what is not committed."""
        self._end(is_fit=False)

    async def _give_back(self) -> None:
        is_fit = False
        try:
            with anyio.move_on_after(_RELEASE_SECONDS, shield=True), suppress(*FAULTS):
                if self._keeps_session:
                    await self._own.execute(_RESET)
                is_fit = True
        finally:
            self._end(is_fit=is_fit)

    def _end(self, *, is_fit: bool) -> None:
        if not self._is_over:
            self._is_over = True
            self.lock_out()
            self._pool.give_back(self._own, is_fit=is_fit)


FAILED_BEFORE: Final = asyncpg.InFailedSQLTransactionError
"""Raised for a statement in a transaction in which an earlier one has failed."""
