"""Transactions of a handler: its own statements, committed together with a step or with the end of the delivery."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio

from runtime.errors import InvalidValue, SettingsError

if TYPE_CHECKING:
    from runtime.connection.database import Connection

T = TypeVar("T")


class OpenTransaction(Protocol):
    """One transaction of an attempt."""

    @property
    def connection(self) -> "Connection":
        """The connection for the handler's statements."""

    def lock_out(self) -> None:
        """Let the handler run nothing more on the connection."""

    async def keep(self, place: tuple[str, str, int], text: str, undo: str | None) -> list[Any]:
        """Keep the result of a step, with what undoes it, and commit.

        Returns the data of one that is kept already, in a list, or none.
        """

    async def finish(self, report: Any) -> None:
        """Finish the delivery as the report says, with its emits, and commit."""

    async def roll_back(self) -> None:
        """Roll back what is not committed."""


class Transactions(Protocol):
    """Opens the transactions of one delivery, on the loop of user code."""

    def begin(self) -> Coroutine[Any, Any, OpenTransaction]:
        """Begin one."""

    def from_thread(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run work on that loop, from a thread of user code, and return its result."""


class BlockingConnection:
    """A connection in a transaction, for plain functions: each query blocks its thread.

    The queries take what those of asyncpg's `Connection` take.
    """

    def __init__(self, connection: "Connection", transactions: Transactions) -> None:
        self._connection = connection
        self._run = transactions.from_thread

    def execute(self, query: str, *arguments: Any, timeout: float | None = None) -> str:
        """Run a statement, or several without arguments; returns the status of the last one."""
        status: str = self._run(lambda: self._connection.execute(query, *arguments, timeout=timeout))
        return status

    def executemany(self, command: str, arguments: Any, *, timeout: float | None = None) -> None:
        """Run a statement once for each row of arguments."""
        self._run(lambda: self._connection.executemany(command, arguments, timeout=timeout))

    def fetch(self, query: str, *arguments: Any, timeout: float | None = None) -> list[Any]:
        """Return the rows of a query."""
        return self._run(lambda: self._connection.fetch(query, *arguments, timeout=timeout))

    def fetchrow(self, query: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Return the first row of a query, or None."""
        return self._run(lambda: self._connection.fetchrow(query, *arguments, timeout=timeout))

    def fetchval(self, query: str, *arguments: Any, column: int = 0, timeout: float | None = None) -> Any:
        """Return a value of the first row of a query, or None."""
        return self._run(lambda: self._connection.fetchval(query, *arguments, column=column, timeout=timeout))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open a savepoint: where the block fails, what was written in it is undone, and the transaction goes on."""
        nested = self._connection.transaction()
        self._run(nested.start)
        try:
            yield
        except BaseException:
            self._run(nested.rollback)
            raise
        self._run(nested.commit)


class Transactional:
    """The part of a context that opens the transaction in which the delivery is finished."""

    __slots__ = ("_transaction",)

    handler: str
    _transaction: OpenTransaction | None

    def _check_thread(self, method: str) -> None:
        raise NotImplementedError

    def _opened_transactions(self) -> Transactions | None:
        raise NotImplementedError

    @asynccontextmanager
    async def transaction(self) -> "AsyncIterator[Connection]":
        """Open the transaction that finishes this delivery, for statements of your own: all or nothing.

        It is committed when the handler has returned: with what was written in the block, with everything the attempt
        emits and answers, and with the end of the delivery. If the handler fails after all, or another worker has the
        delivery by now, all of it is rolled back. So a delivery has one such block, at its end. For a transaction in
        the middle, `step(…, transaction=True)`.

        It needs a direct connection to the database, DATABASE_URL. The connection is asyncpg's, in isolation level read
        committed; do not end the transaction by statements. A nested `connection.transaction()` is a savepoint.

        Raises:
            SettingsError: the worker has no direct connection.
            StoreError: the database was not reached, or each connection for transactions was in use for too long.
            InvalidValue: the attempt has had its block.
        """
        opened = await self._begun(self._needed_transactions())
        try:
            yield opened.connection
        except BaseException:
            self._transaction = None
            await opened.roll_back()
            raise
        opened.lock_out()

    @contextmanager
    def transaction_blocking(self) -> Iterator[BlockingConnection]:
        """Do the same as `transaction` in a handler that is a plain function: each query blocks its thread."""
        self._check_thread("transaction")
        transactions = self._needed_transactions()
        opened = transactions.from_thread(lambda: self._begun(transactions))
        try:
            yield BlockingConnection(opened.connection, transactions)
        except BaseException:
            self._transaction = None
            transactions.from_thread(opened.roll_back)
            raise
        opened.lock_out()

    async def close_transaction(self) -> None:
        """Roll the attempt's transaction back, unless it was committed."""
        if self._transaction is not None:
            await self._transaction.roll_back()

    @property
    def finish(self) -> Callable[[Any], Awaitable[None]] | None:
        """What finishes the delivery in the transaction of the attempt; None where it has none."""
        return None if self._transaction is None else self._transaction.finish

    async def _begun(self, transactions: Transactions) -> OpenTransaction:
        self._check_first()
        opened = await transactions.begin()
        try:
            self._check_first()
        except InvalidValue:
            await opened.roll_back()
            raise
        self._transaction = opened
        return opened

    def _check_first(self) -> None:
        if self._transaction is not None:
            raise InvalidValue(
                f"{self.handler} has opened the transaction that finishes its message already, and there is one: put "
                'everything into one block, or use `context.step("name", function, …, transaction=True)` before it.'
            )

    def _needed_transactions(self) -> Transactions:
        return _needed(self._opened_transactions())


async def kept_together(
    transactions: Transactions | None,
    place: tuple[str, str, int],
    work: Callable[["Connection", BlockingConnection], Awaitable[str]],
    undo: str | None,
    timeout: float | None,
) -> tuple[str, list[Any]]:
    """Await work with a connection, and keep the text that it returns as a step in the connection's transaction.

    Args:
        transactions: opens one.
        place: which step it is.
        work: gets the connection, for a function on the loop or in a thread.
        undo: what undoes the step, as JSON text; None for nothing.
        timeout: seconds that it may take.

    Returns:
        The text; and what is kept already in its place, as `OpenTransaction.keep` returns it.
    """
    transactions = _needed(transactions)
    with anyio.fail_after(timeout):
        opened = await transactions.begin()
        try:
            text = await work(opened.connection, BlockingConnection(opened.connection, transactions))
        except BaseException:
            await opened.roll_back()
            raise
    return text, await opened.keep(place, text, undo)


def kept_together_blocking(
    transactions: Transactions | None,
    place: tuple[str, str, int],
    work: Callable[[BlockingConnection], str],
    undo: str | None,
) -> tuple[str, list[Any]]:
    """Do the same as `kept_together` in a thread of user code."""
    transactions = _needed(transactions)
    opened = transactions.from_thread(transactions.begin)
    try:
        text = work(BlockingConnection(opened.connection, transactions))
    except BaseException:
        transactions.from_thread(opened.roll_back)
        raise
    return text, transactions.from_thread(lambda: opened.keep(place, text, undo))


def _needed(transactions: Transactions | None) -> Transactions:
    if transactions is None:
        raise SettingsError(
            "A transaction needs a direct connection to the database, and over the REST API there is none: set "
            "DATABASE_URL for this worker, as postgresql://postgres:password@host:5432/postgres. A test runs the agent "
            "in a worker, `async with harness.running(agent)`."
        )
    return transactions
