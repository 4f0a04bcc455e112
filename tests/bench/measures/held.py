"""What does a long transaction beside it cost? While one holds its snapshot, no dead row can be removed."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

import anyio

from tests.bench.contestants import contestant
from tests.bench.measures import Scale
from tests.bench.measures.drain import drained
from tests.bench.sample import Sample
from tests.bench.server import Database, Server, Shape, call
from tests.bench.workers import Workers

_BEFORE = 3
_TIMES = 3
_RECOVERED = 0.9
_LOOK_SECONDS = 5.0


async def held(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Three drains after a longer queue, and the same while a transaction has been open since before that queue."""
    database = await _worked_through(server, scale, name)
    for _ in range(_TIMES):
        yield await _again(server, scale, name, database, "held/free")
    database = await server.fresh(name, Shape(queued=scale.messages * _BEFORE))
    async with _held_open(server, database) as holder:
        opened = time.monotonic()
        await _work_through(server, scale, name, database)
        await anyio.sleep(max(0.0, opened + scale.held_seconds - time.monotonic()))
        for _ in range(_TIMES):
            yield await _again(server, scale, name, database, "held/held open")
        await holder.execute("rollback")


async def recovery(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """How long after the end of such a transaction a drain is as fast again as it was, by itself."""
    database = await _worked_through(server, scale, name)
    free = median([(await _again(server, scale, name, database, "")).value for _ in range(_TIMES)])
    async with _held_open(server, database) as holder:
        opened = time.monotonic()
        await call(name, "send", database.url, scale.messages * _BEFORE, 1000)
        await _work_through(server, scale, name, database)
        await anyio.sleep(max(0.0, opened + scale.held_seconds - time.monotonic()))
        held_open = await _again(server, scale, name, database, "")
        await holder.execute("rollback")
    ended = began = time.monotonic()
    again = held_open
    track = []
    while again.value < _RECOVERED * free and began < ended + scale.recovery_seconds:
        began = time.monotonic()
        again = await _again(server, scale, name, database, "")
        track.append((round(began - ended, 1), round(again.value / free, 2)))
        await anyio.sleep(_LOOK_SECONDS)
    more = {"held open": round(held_open.value / free, 2), "track": track}
    yield Sample("held/recovered after", name, began - ended, "s", again.foreign, more)


@asynccontextmanager
async def _held_open(server: Server, database: Database) -> AsyncIterator[Any]:
    """A transaction with a snapshot of its own, and with a number, as any that has written."""
    async with server.connected(database) as holder:
        await holder.execute("begin isolation level repeatable read")
        await holder.execute("select pg_current_xact_id()")
        yield holder


async def _again(server: Server, scale: Scale, name: str, database: Database, figure: str) -> Sample:
    """One more drain of the same database."""
    await call(name, "send", database.url, scale.messages, 1000)
    return await drained(server, scale, name, Shape(queued=scale.messages), figure, database=database)


async def _worked_through(server: Server, scale: Scale, name: str) -> Database:
    """A database in which that much work is done."""
    database = await server.fresh(name, Shape(queued=scale.messages * _BEFORE))
    await _work_through(server, scale, name, database)
    return database


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
