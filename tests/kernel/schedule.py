"""In which order do two transactions meet? One starts a statement, the other goes on once that statement waits."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio

from tests.kernel.driver import until

T = TypeVar("T")


@dataclass
class Started(Generic[T]):
    """A call under way in a task of its own."""

    _ended: anyio.Event = field(default_factory=anyio.Event)
    _value: T | None = None
    _error: Exception | None = None

    @property
    def has_ended(self) -> bool:
        """Whether there is an outcome."""
        return self._ended.is_set()

    async def outcome(self, *, seconds: float = 120) -> T:
        """What it returned, or raise what it raised; fail at the deadline."""
        with anyio.fail_after(seconds):
            await self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    async def _run(self, call: Callable[[], Awaitable[T]]) -> None:
        try:
            self._value = await call()
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the outcome
            self._error = error
        finally:
            self._ended.set()


@asynccontextmanager
async def started(call: Callable[[], Awaitable[T]]) -> AsyncIterator[Started[T]]:
    """Start a call; on the way out it is cancelled if it is still under way."""
    under_way: Started[T] = Started()
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(under_way._run, call)
        try:
            yield under_way
        except Exception as error:  # noqa: BLE001 - raised below, by itself and not as a group of one
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def until_waiting(observer: Any, connection: Any) -> None:
    """Return when `connection` waits for a lock that another transaction holds.

    Args:
        observer: a third connection, which looks.
        connection: the one whose statement is under way.
    """
    pid = connection.get_server_pid()

    async def waits() -> bool:
        return bool(await observer.fetchval("select cardinality(pg_blocking_pids($1)) > 0", pid))

    await until(waits)


@asynccontextmanager
async def transaction(connection: Any) -> AsyncIterator[Any]:
    """An open transaction; commits at the end unless it was ended before."""
    open_one = connection.transaction()
    await open_one.start()
    try:
        yield open_one
    except BaseException:
        if connection.is_in_transaction():
            with anyio.CancelScope(shield=True):
                await open_one.rollback()
        raise
    else:
        if connection.is_in_transaction():
            await open_one.commit()
