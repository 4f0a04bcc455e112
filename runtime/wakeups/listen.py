"""How is a connection kept that hears NOTIFY? It is opened for its channels, and closed whatever happens on it."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import anyio

from runtime.connection.addresses import DatabaseAddress
from runtime.connection.database import FAULTS, Connection, open_connection
from runtime.connection.pooler import is_transaction_pooled

__all__ = ["CONNECT_SECONDS", "FAULTS", "is_unheard", "listening"]

CONNECT_SECONDS = 10.0

Take: TypeAlias = Callable[[Any, int, str, object], None]


async def is_unheard(address: DatabaseAddress) -> bool:
    """Whether a transaction pooler stands in between: a LISTEN would stay behind on a connection that others use."""
    return address.names_pooler or await is_transaction_pooled(address.url, connect_seconds=CONNECT_SECONDS)


@asynccontextmanager
async def listening(
    address: DatabaseAddress, channels: Iterable[str], take: Take, ended: Callable[[], object], *, who: str
) -> AsyncIterator[Connection]:
    """A connection that listens to these channels.

    Args:
        take: told of each notification: the connection, the sender's process, the channel, the payload.
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
        # A connection that does not close in time is dropped, and asyncpg says so by an exception.
        with anyio.CancelScope(shield=True), suppress(*FAULTS):
            await connection.close(timeout=1)
