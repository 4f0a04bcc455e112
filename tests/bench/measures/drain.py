"""How fast is a queue emptied? From the first handler's start until the contestant's own table says all is done."""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio

from tests.bench.contestants import contestant
from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.sample import Sample
from tests.bench.server import Database, Server, Shape
from tests.bench.workers import Workers

_LOOK_SECONDS = 0.005
_START_SECONDS = 30


async def drain(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """By one worker, and by two."""
    for count in (1, 2):
        figure = f"drain/{count} worker{'s' * (count > 1)}"
        sample = await drained(server, scale, name, Shape(queued=scale.messages), figure, workers=count)
        yield sample
        yield cpu_of(sample)


async def drained(
    server: Server,
    scale: Scale,
    name: str,
    shape: Shape,
    figure: str,
    *,
    workers: int = 1,
    deliveries: int | None = None,
    environment: Mapping[str, str] | None = None,
    database: Database | None = None,
    url: str | None = None,
) -> Sample:
    """Drain one database of this shape.

    Args:
        deliveries: how many handlers start; one per message and handler when None. Of a longer queue only the first.
        environment: of ours, when not the direct store.
        database: that holds this shape already; a fresh one when None.
        url: where the workers find it, if not where it is.
    """
    database = database or await server.fresh(name, shape)
    deliveries = deliveries or shape.queued * shape.handlers
    pending = contestant(name).pending if shape.queued <= deliveries else "select false"
    await quiet(scale.quiet_seconds)
    async with (
        server.connected(database) as connection,
        Workers.started(
            server.folder, name, url or database.url, shape.agents,
            count=workers, handlers=shape.handlers, environment=environment,
        ) as running,
    ):  # fmt: skip
        await _until_begun(running)
        foreign = Foreign(lambda: server.pids)
        before = _cpu(server, running)
        ended = await _until_done(connection, pending, running, deliveries, scale.drain_seconds)
        after = _cpu(server, running)
        end = ended or running.last
        seconds = max(end - running.first, 1) / 1e9
        more: dict[str, Any] = {
            "handled": running.count,
            "seconds": seconds,
            "cut off": ended is None,
            "megabytes": running.megabytes(),
            **{f"{side} cpu": after[side] - before[side] for side in after},
        }
        done = deliveries if ended is not None else running.count
        return Sample(figure, name, done / seconds, "/s", foreign.cores(), more)


def cpu_of(sample: Sample) -> Sample:
    """CPU time of a drain for each handler that ran, on all sides: other programs cost time, and hardly any of this."""
    sides = {side: sample.more[f"{side} cpu"] for side in ("worker", "database", "gateway")}
    each = {side: seconds / max(sample.more["handled"], 1) * 1e6 for side, seconds in sides.items()}
    more = {"foreign": sample.foreign, **each}
    return Sample(f"{sample.figure}, CPU", sample.contestant, sum(each.values()), "µs each", 0, more)


def _cpu(server: Server, workers: Workers) -> dict[str, float]:
    """CPU seconds so far, by side."""
    return {"worker": workers.cpu_seconds(), **server.cpu_seconds()}


async def _until_begun(workers: Workers) -> None:
    with anyio.fail_after(_START_SECONDS):
        while not workers.count:
            workers.check()
            await anyio.sleep(_LOOK_SECONDS)


async def _until_done(
    connection: Any, pending: str, workers: Workers, deliveries: int, limit_seconds: float
) -> int | None:
    """Nanoseconds when nothing was pending any more; None when the limit came first."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        if workers.count >= deliveries and not await connection.fetchval(pending):
            return time.monotonic_ns()
        workers.check()
        await anyio.sleep(_LOOK_SECONDS)
    return None
