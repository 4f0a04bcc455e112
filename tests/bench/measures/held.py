"""What does a long transaction beside it cost? While one holds its snapshot, no dead row can be removed."""

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio

from tests.bench.contestants import OURS, contestant
from tests.bench.measures import Scale
from tests.bench.measures.drain import drained
from tests.bench.sample import Sample
from tests.bench.server import Database, Server, Shape, call
from tests.bench.workers import Workers

_BEFORE = 3
_RECOVERED = 0.9
_LOOK_SECONDS = 5.0


async def held(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """A drain after three others, and the same while a transaction has been open since before the first of them.

    How long it takes until the drain is as fast again after the end of that transaction is seen of ours alone.
    """
    before = Shape(queued=scale.messages * _BEFORE)
    queued = Shape(queued=scale.messages)
    database = await server.fresh(name, before)
    await _work_through(server, scale, name, database)
    await call(name, "send", database.url, scale.messages, 1000)
    free = await drained(server, scale, name, queued, "held/free", database=database)
    yield free

    database = await server.fresh(name, before)
    async with server.connected(database) as holder:
        await holder.execute("begin isolation level repeatable read")
        # It has a number of its own too, as any transaction that has written.
        await holder.execute("select pg_current_xact_id()")
        opened = time.monotonic()
        await _work_through(server, scale, name, database)
        await call(name, "send", database.url, scale.messages, 1000)
        await anyio.sleep(max(0.0, opened + scale.held_seconds - time.monotonic()))
        yield await drained(server, scale, name, queued, "held/held open", database=database)
        await holder.execute("rollback")
        ended = time.monotonic()
    if name == OURS:
        while time.monotonic() < ended + scale.recovery_seconds:
            began = time.monotonic()
            await call(name, "send", database.url, scale.messages, 1000)
            again = await drained(server, scale, name, queued, "held/after", database=database)
            if again.value >= _RECOVERED * free.value:
                yield Sample("held/recovered after", name, began - ended, "s", again.foreign)
                return
            await anyio.sleep(_LOOK_SECONDS)


async def _work_through(server: Server, scale: Scale, name: str, database: Database) -> None:
    """Let a worker empty the queue, as far as it comes in the time."""
    async with (
        server.connected(database) as connection,
        Workers.started(server.folder, name, database.url) as workers,
    ):
        await _until_empty(connection, contestant(name).pending, workers, scale.held_seconds / 2)


async def _until_empty(connection: Any, pending: str, workers: Workers, limit_seconds: float) -> None:
    with anyio.move_on_after(limit_seconds):
        while await connection.fetchval(pending):
            workers.check()
            await anyio.sleep(0.05)
