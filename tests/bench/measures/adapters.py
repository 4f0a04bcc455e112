"""What do adapters cost? A run of an agent of Pydantic AI beside the same one without steps, and beside bare steps."""

import json
from collections.abc import AsyncIterator
from statistics import median

import anyio

from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.sample import Sample
from tests.bench.server import Server, Shape, call
from tests.bench.workers import Workers

_RUNS_SECONDS = 120
_TIMED = "select value from consciousness_stream where key = 'bench.timed'"


async def adapters(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Runs of an agent in one handler: for each request of its model, and what of that the adapter itself takes."""
    database = await server.fresh(name, Shape(agents="assistant"))
    await call(name, "send", database.url, 1, 1)
    await quiet(scale.quiet_seconds)
    foreign = Foreign(lambda: server.pids)
    async with (
        server.connected(database) as connection,
        Workers.started(server.folder, name, database.url, "assistant") as workers,
    ):
        with anyio.fail_after(_RUNS_SECONDS):
            while (timed := await connection.fetchval(_TIMED)) is None:
                workers.check()
                await anyio.sleep(0.05)
    cores = foreign.cores()
    middle = {what: median(seconds) * 1e3 for what, seconds in json.loads(timed).items()}
    for what, milliseconds in middle.items():
        yield Sample(f"adapters/request, {what}", name, milliseconds, "ms", cores)
    own = middle["with steps"] - middle["alone"] - middle["bare steps"]
    yield Sample("adapters/request, of Pydantic AI's adapter itself", name, own, "ms", cores)
