"""What do steps cost? Handlers of three of them beside durable workflows, and one step beside one message sent."""

import json
from collections.abc import AsyncIterator

import anyio

from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.measures.drain import cpu_of, drained
from tests.bench.sample import Sample, percentile
from tests.bench.server import Server, Shape, call
from tests.bench.workers import Workers

_TRIPS_SECONDS = 60


async def steps(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Handlers of three steps, by one worker."""
    shape = Shape(queued=scale.steps, agents="steps")
    sample = await drained(server, scale, name, shape, "steps/handlers of three")
    yield sample
    yield cpu_of(sample)


async def trips(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """A step and a single send in turn, from one handler."""
    database = await server.fresh(name, Shape(agents="trips"))
    await call(name, "send", database.url, 1, 1)
    await quiet(scale.quiet_seconds)
    foreign = Foreign(lambda: server.pids)
    async with (
        server.connected(database) as connection,
        Workers.started(server.folder, name, database.url, "trips") as workers,
    ):
        with anyio.fail_after(_TRIPS_SECONDS):
            while (timed := await connection.fetchval(_TIMED)) is None:
                workers.check()
                await anyio.sleep(0.05)
    for what, seconds in json.loads(timed).items():
        yield Sample(f"trips/{what}, p50", name, percentile(seconds, 0.5) * 1e3, "ms", foreign.cores())


_TIMED = "select value from consciousness_stream where key = 'bench.timed'"
