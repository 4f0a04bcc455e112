"""The ways to the kernel: plain SQL in a transaction that stays open for a moment, and both stores."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Protocol

import anyio
import asyncpg

from runtime.errors import StoreUnavailable
from runtime.store.functions import FUNCTIONS
from runtime.store.postgres import PostgresStore
from runtime.store.sqlstates import ROLLED_BACK
from runtime.store.supabase import SupabaseStore

AWAY = (
    OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError,
    # A connection that was killed between two statements.
    asyncpg.InternalClientError,
)  # fmt: skip
ISOLATIONS = ("read committed", "read committed", "repeatable read", "serializable")


_LOST = 0.02


class Road(Protocol):
    """One call of one function of the kernel; what was rolled back or lost raises `StoreUnavailable`."""

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Its answer, decoded; JSON arguments are texts."""


class SqlRoad:
    """A connection of its own, opened again after it was killed, and transactions that stay open for a moment."""

    def __init__(self, url: str, random: Random, *, hold_seconds: float) -> None:
        self._url, self._random, self._hold = url, random, hold_seconds
        self._connection: Any = None

    async def connection(self) -> Any:
        """The connection; a new one where the last was lost."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._url)
        return self._connection

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Its answer, once the transaction around the call has committed."""
        kinds = FUNCTIONS[function]
        given = ", ".join(f"{name} => ${n}::text::{kinds[name]}" for n, name in enumerate(arguments, 1))
        values = [value if isinstance(value, str) else _text(value) for value in arguments.values()]
        try:
            connection = await self.connection()
            async with connection.transaction():
                answer = await connection.fetchval(f"select public.{function}({given})", *values)
                await anyio.sleep(self._random.random() * self._hold)
            if self._random.random() < _LOST:
                raise StoreUnavailable("committed, and the answer was lost")
        except AWAY as error:
            raise StoreUnavailable(f"the connection was lost: {error!r}") from error
        except asyncpg.PostgresError as error:
            if error.sqlstate in ROLLED_BACK or error.sqlstate == "55P03":
                raise StoreUnavailable(f"rolled back: {error}") from error
            raise
        return json.loads(answer)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.terminate()


def _text(value: Any) -> str:
    return "{" + ",".join(map(str, value)) + "}" if isinstance(value, list) else str(value)


async def until_answered(road: Road, function: str, arguments: Mapping[str, Any]) -> Any:
    """Call again and again until there is an answer; for calls that may be repeated."""
    with anyio.fail_after(120):
        while True:
            try:
                return await road.call(function, arguments)
            except StoreUnavailable:
                await anyio.sleep(0.005)
    raise AssertionError("unreachable")


@asynccontextmanager
async def roads(
    url: str, gateway: tuple[str, str] | None, random: Random
) -> AsyncIterator[Callable[[str], Road]]:
    """Makes roads by their names, sql, direct and rest, and closes them all in the end."""
    opened: list[Any] = []
    direct = PostgresStore(url, connections=4)
    opened.append(direct)
    rest = None if gateway is None else await SupabaseStore.connect(*gateway)
    if rest is not None:
        opened.append(rest)

    def road(name: str) -> Road:
        if name == "sql":
            made = SqlRoad(url, Random(random.random()), hold_seconds=0.01)
            opened.append(made)
            return made
        return direct if name == "direct" or rest is None else rest

    try:
        yield road
    finally:
        with anyio.CancelScope(shield=True):
            for each in opened:
                await each.close()
