"""What do suspended deliveries cost others, and how soon does one go on?"""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

import anyio

from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.measures.drain import drained
from tests.bench.measures.latency import paced, ready
from tests.bench.measures.sending import BATCH
from tests.bench.measures.writers import commits
from tests.bench.sample import Sample
from tests.bench.server import Database, Server, Shape, call
from tests.bench.workers import Workers

# Only for what hangs.
_SUSPEND_SECONDS: Final = 900
_LONG_SECONDS: Final = 86_400
# Those that come due at once do so in the midst of the paced messages.
_BEFORE_SECONDS: Final = 3
_WRITERS: Final = 8


async def suspended(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """A drain beside nothing, and beside a crowd that sleeps."""
    for crowd in (0, scale.suspended):
        database = await _beside(server, name, "bench.sleep", _moment(_LONG_SECONDS), crowd)
        await call(name, "send", database.url, scale.messages, 1000)
        # More are queued than end: the crowd stays.
        shape = Shape(queued=scale.messages + 1, agents="beside")
        figure = f"suspended/drain beside {crowd:,}"
        sample = await drained(
            server, scale, name, shape, figure, deliveries=scale.messages, database=database
        )
        yield sample
        megabytes = sample.more["megabytes"]
        yield Sample(f"suspended/memory beside {crowd:,}", name, megabytes, "MB", 0)


async def awaited(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Inserts while nobody waits, and while a crowd waits for other keys."""
    for crowd in (0, scale.suspended // 10):
        database = await _beside(server, name, "bench.wait", "n", crowd)
        for batch, count in ((1, scale.messages // 10), (BATCH, scale.messages)):
            await quiet(scale.quiet_seconds)
            foreign = Foreign(lambda: server.pids)
            answer = await call(name, "send", database.url, count, batch)
            figure = f"awaited/send of {batch} beside {crowd:,}"
            yield Sample(figure, name, count / answer["seconds"], "/s", foreign.cores())
        foreign = Foreign(lambda: server.pids)
        rate = await commits(server, database, "consciousness_stream", _WRITERS, scale.writing_seconds)
        yield Sample(f"awaited/{_WRITERS} writers beside {crowd:,}", name, rate, "/s", foreign.cores())


async def due(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """The latency of fresh messages beside nothing, and while a crowd comes due at once."""
    for crowd in (0, scale.suspended // 10):
        database = await server.fresh(name, Shape(agents="beside"))

        async def until_due(database: Database = database, crowd: int = crowd) -> None:
            await _insert(server, database, "bench.sleep", _moment(_LONG_SECONDS), crowd)
            await _until_suspended(server, database, crowd)
            # However long the machine took to suspend them.
            async with server.connected(database) as connection:
                await connection.execute(_COME_DUE, timedelta(seconds=_BEFORE_SECONDS))

        figure = f"due/beside {crowd:,}"
        async for sample in paced(server, scale, name, database, figure, agents="beside", prepare=until_due):
            yield sample


async def resumed(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """From the return of the sending call to the line after `wait_for`, and to the start of a fresh delivery."""
    database = await server.fresh(name, Shape(agents="waiting"))

    async def wait() -> None:
        await _insert(server, database, "bench.wait", "n - 1", scale.paced)
        await _until_suspended(server, database, scale.paced)

    async for sample in paced(
        server, scale, name, database, "resumed/after a wait", agents="waiting", prepare=wait
    ):
        yield sample
    fresh = await server.fresh(name, Shape())
    async for sample in paced(server, scale, name, fresh, "resumed/fresh delivery"):
        yield sample


async def _beside(server: Server, name: str, key: str, value: str, crowd: int) -> Database:
    """A database in which so many deliveries are suspended."""
    database = await server.fresh(name, Shape(agents="beside"))
    async with Workers.started(server.folder, name, database.url, "beside") as workers:
        await ready(server, database, name, workers)
        await _insert(server, database, key, value, crowd)
        await _until_suspended(server, database, crowd)
        await workers.end()
    async with server.connected(database) as connection:
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
    return database


async def _insert(server: Server, database: Database, key: str, value: str, count: int) -> None:
    """Write so many messages; `value` is an expression of their number `n`, from 1."""
    async with server.connected(database) as connection:
        await connection.execute(
            f"insert into consciousness_stream (key, value) select $1, to_jsonb({value}) from generate_series(1, $2) n",
            key, count,
        )  # fmt: skip


async def _until_suspended(server: Server, database: Database, count: int) -> None:
    async with server.connected(database) as connection:
        with anyio.fail_after(_SUSPEND_SECONDS):
            while await connection.fetchval(_SUSPENDED) < count or not await connection.fetchval(_SETTLED):
                await anyio.sleep(0.05)


_SUSPENDED = (
    "select count(*) from runtime.waits w join runtime.deliveries d using (message_id, subscription) "
    "where d.lease is null and d.visible_at > now()"
)
_COME_DUE = (
    "with moved as (update runtime.waits set until = now() + $1 returning message_id, subscription, until) "
    "update runtime.deliveries d set visible_at = m.until from moved m "
    "where (d.message_id, d.subscription) = (m.message_id, m.subscription) and d.lease is null"
)
# The waits of a crowd are looked at once more in turns.
_SETTLED = "select not exists (select from runtime.unsettled_waits)"


def _moment(seconds: int) -> str:
    """An expression of the moment so many seconds from now, as a Unix time."""
    return f"extract(epoch from now()) + {seconds}"
