"""What could nobody beat on this machine? The database's own work, without anything of a queue around it."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg

from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.payload import payload_json
from tests.bench.sample import Sample, percentile
from tests.bench.server import Database, Server, Shape

_BATCH = 100
_TABLE = """
drop table if exists plain;
create table plain (id bigint generated always as identity primary key, key text, value jsonb);
"""
_DELETE = """
delete from plain where id in (select id from plain order by id for update skip locked limit 100)
returning id, key, value
"""
_INSERT = "insert into plain (key, value) select 'bench', v from unnest($1::jsonb[]) v"


async def limits(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Deletes and inserts of a plain table, a round trip, and the time a NOTIFY takes."""
    database = await server.fresh(name, Shape())
    await quiet(scale.quiet_seconds)
    foreign = Foreign(lambda: server.pids)

    def sample(figure: str, value: float, unit: str) -> Sample:
        return Sample(f"limit/{figure}", name, value, unit, foreign.cores())

    for count in (1, 2):
        rate = await _deletes(server, database, scale.messages * 2, count)
        yield sample(f"delete of 100, {count} connection{'s' * (count > 1)}", rate, "/s")
    async with _connected(database) as connection:
        insert = await connection.prepare(_INSERT)
        for batch, total in ((1, scale.messages // 10), (_BATCH, scale.messages)):
            values = [payload_json(number) for number in range(batch)]
            seconds = sum(await _times(partial(insert.fetch, values), total // batch))
            yield sample(f"insert of {batch}", total / seconds, "/s")
        ask = await connection.prepare("select 1")
        trips = await _times(ask.fetch, scale.paced * 2)
        yield sample("round trip, p50", percentile(trips, 0.5) * 1e3, "ms")
    heard = [each async for each in _notified(database, scale.paced)]
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        yield sample(f"NOTIFY, {label}", percentile(heard, share) * 1e3, "ms")


async def _deletes(server: Server, database: Database, rows: int, count: int) -> float:
    """Rows a second that so many connections delete and read."""
    async with server.connected(database) as connection:
        await connection.execute(_TABLE)
        await connection.execute(
            f"insert into plain (key, value) select 'bench', '{payload_json(1)}' from generate_series(1, {rows})"
        )
        await connection.execute("vacuum analyze plain")
        await connection.execute("grant all on plain to postgres")

    async def empty() -> None:
        async with _connected(database) as connection:
            delete = await connection.prepare(_DELETE)
            while await delete.fetch():
                pass

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(empty)
    return rows / (time.perf_counter() - began)


async def _times(act: Callable[[], Awaitable[Any]], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        await act()
        seconds.append(time.perf_counter() - began)
    return seconds


async def _notified(database: Database, count: int) -> AsyncIterator[float]:
    """Seconds from the return of a statement that notifies until another connection hears of it."""
    async with _connected(database) as speaker, _connected(database) as listener:
        heard: list[float] = []
        await listener.add_listener("plain", lambda *_: heard.append(time.perf_counter()))
        for _ in range(count):
            await speaker.execute("notify plain")
            said = time.perf_counter()
            with anyio.fail_after(5):
                while not heard:
                    await anyio.lowlevel.checkpoint()
            yield heard.pop() - said
            await anyio.sleep(0.002)


@asynccontextmanager
async def _connected(database: Database) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database.url)
    try:
        yield connection
    finally:
        await connection.close()
