"""A connection that listens for NOTIFY, opened again whenever it ends."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn, TypeAlias

import anyio

from runtime.backoff import Outage
from runtime.connection.addresses import DatabaseAddress
from runtime.connection.database import FAULTS, Connection, open_connection
from runtime.connection.pooler import is_transaction_pooled

CONNECT_SECONDS = 10.0
CLOSED = "the connection was closed"
_POOLED = (
    "a transaction pooler stands in between, and LISTEN does not work through one; use a direct connection or a "
    "session pooler, or set RUNTIME_NOTIFY=false"
)

Take: TypeAlias = Callable[[Any, int, str, object], None]


async def is_unheard(address: DatabaseAddress) -> bool:
    """Return whether a transaction pooler stands in between: a LISTEN would stay on a connection that others use."""
    return address.names_pooler or await is_transaction_pooled(address.url, connect_seconds=CONNECT_SECONDS)


async def listen_for_ever(
    address: DatabaseAddress,
    listen_once: Callable[[], Awaitable[str]],
    lost: Callable[[str, str, float], object],
    outage: Outage,
    *,
    pooled_seconds: float,
) -> NoReturn:
    """Listen on one connection after the other, until cancelled.

    Args:
        address: where the database is.
        listen_once: listens on one connection, and returns why it ended.
        lost: told the kind of trouble, why a connection ended, and the seconds until the next one.
        outage: `listen_once` ends it when it listens.
        pooled_seconds: the pause behind a transaction pooler, which only the operator of the database can change.
    """
    while True:
        kind = "no connection"
        try:
            if await is_unheard(address):
                kind, why = "pooled", _POOLED
            else:
                why = await listen_once()
        except FAULTS as error:
            why = f"no connection ({type(error).__name__})"
        pause = pooled_seconds if kind == "pooled" else outage.pause_seconds()
        lost(kind, why, pause)
        await anyio.sleep(pause)


@asynccontextmanager
async def listening(
    address: DatabaseAddress, channels: Iterable[str], take: Take, ended: Callable[[], object], *, who: str
) -> AsyncIterator[Connection]:
    """A connection that listens to these channels; it is closed at the end of the block, whatever its state.

    Args:
        address: where the database is.
        channels: their names.
        take: called with each notification: the connection, the sender's process, the channel, the payload.
        ended: called when the connection has ended by itself.
        who: its name among the server's connections.
    """
    connection = await open_connection(
        address.url,
        seconds=CONNECT_SECONDS,
        statement_cache_size=0,
        server_settings={"application_name": f"agent-runtime {who}"},
    )
    try:
        connection.add_termination_listener(lambda _: ended())
        for channel in channels:
            await connection.add_listener(channel, take)
        yield connection
    finally:
        # asyncpg raises when a connection does not close in time; it is dropped then.
        with anyio.CancelScope(shield=True), suppress(*FAULTS):
            await connection.close(timeout=1)
