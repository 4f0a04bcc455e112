"""Does a worker grow with what it has done? Its memory while 200,000 messages go through it."""

from collections.abc import AsyncIterator

import anyio

from tests.bench.measures import Scale
from tests.bench.measures.latency import ready
from tests.bench.sample import Sample
from tests.bench.server import Server, Shape, call
from tests.bench.workers import Workers

_TIMES = 10
_SETTLED = 0.25


async def memory(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Memory after a quarter of ten times as many messages as a drain has, and after all of them."""
    total = scale.messages * _TIMES
    database = await server.fresh(name, Shape())
    track: list[tuple[int, float]] = []
    async with Workers.started(server.folder, name, database.url) as workers:
        await ready(server, database, name, workers)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, name, "send", database.url, total, 1000)
            while workers.count < total:
                workers.check()
                track.append((workers.count, workers.megabytes()))
                await anyio.sleep(0.1)
        await anyio.sleep(0.5)
        track.append((total, workers.megabytes()))
    early = max((megabytes for count, megabytes in track if count <= total * _SETTLED), default=track[0][1])
    yield Sample("memory/after 50,000", name, early, "MB", 0, {"track": _thinned(track)})
    yield Sample("memory/after 200,000", name, track[-1][1], "MB", 0)


def _thinned(track: list[tuple[int, float]]) -> list[tuple[int, float]]:
    step = max(1, len(track) // 100)
    return [(count, round(megabytes, 2)) for count, megabytes in track[::step]]
