"""How long from commit to handler? Messages sent at a pace, against the moments at which their handlers started."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import anyio

from runtime.local import keys
from tests.bench.contestants import OURS
from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.sample import Sample, percentile
from tests.bench.server import Database, Server, Shape, call
from tests.bench.workers import Workers

_GAP_SECONDS = 0.02
_LOAD = 1_000
_READY_SECONDS = 30
_REST_SECONDS = 1.5


async def latency(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Idle, and beside a thousand other messages a second; ours by the direct store and NOTIFY."""
    for load in (0, _LOAD):
        database = await server.fresh(name, Shape())
        async for sample in paced(server, scale, name, database, _figure("direct", load), load):
            yield sample


async def paths(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Ours over each way in: Realtime with either store, and polling."""
    for load in (0, _LOAD):
        database = await server.fresh(name, Shape())
        async with server.gateway(database) as gateway:
            rest = {
                "SUPABASE_URL": f"http://127.0.0.1:{gateway.port}",
                "SUPABASE_SERVICE_ROLE_KEY": keys.SERVICE_ROLE_KEY,
            }
            direct = {"DATABASE_URL": database.url, "RUNTIME_NOTIFY": "false"}
            deaf = {"RUNTIME_BROADCAST": "false", "RUNTIME_POSTGRES_CHANGES": "false"}
            for way, environment in (
                ("Realtime + REST", rest),
                ("Realtime + direct", {**rest, **direct}),
                ("polling, direct", direct),
                ("polling, REST", {**rest, **deaf}),
            ):
                async for sample in paced(
                    server, scale, name, database, _figure(way, load), load, environment
                ):
                    yield sample


def _figure(way: str, load: int) -> str:
    return f"latency/{way}, {'under load' if load else 'idle'}"


async def paced(
    server: Server,
    scale: Scale,
    name: str,
    database: Database,
    figure: str,
    load: int = 0,
    environment: Mapping[str, str] | None = None,
    agents: str = "fan_out",
    prepare: Callable[[], Awaitable[None]] | None = None,
    url: str | None = None,
    count: int | None = None,
    gap: float = _GAP_SECONDS,
) -> AsyncIterator[Sample]:
    """Send at a pace that a worker keeps up with, and take the time until each start.

    Args:
        load: other messages a second.
        environment: of ours, when not the direct store.
        agents: the module that ours runs.
        prepare: what is done once the worker is ready.
        url: where the worker finds the database, if not where the sender does.
        count: how many messages; as many as the scale says when None.
        gap: seconds between them.
    """
    url = url or database.url
    async with Workers.started(server.folder, name, url, agents, environment=environment) as workers:
        await ready(server, database, name, workers)
        if prepare is not None:
            await prepare()
        # Whatever it does at its start is over, and what it does at rest has begun.
        await anyio.sleep(_REST_SECONDS)
        await quiet(scale.quiet_seconds)
        foreign = Foreign(lambda: server.pids)
        moments = await call(name, "pace", database.url, count or scale.paced, gap, load)
        cores = foreign.cores()
        await anyio.sleep(_REST_SECONDS)
        taken = list(_milliseconds(workers, moments))
    more = {
        "of": len(moments),
        "still waiting": sum(not workers.starts[0].of(n) for n in range(len(moments))),
    }
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        yield Sample(f"{figure}, {label}", name, percentile(taken, share), "ms", cores, more)


def _milliseconds(workers: Workers, moments: list[tuple[int, int]]) -> Iterator[float]:
    """From the return of each sending call to the handler's start; below zero when the handler was quicker.

    A message that still waits counts by how long it has.
    """
    now = time.monotonic_ns()
    for number, (_, committed) in enumerate(moments):
        yield ((workers.starts[0].of(number) or now) - committed) / 1e6


async def ready(server: Server, database: Database, name: str, workers: Workers) -> None:
    """Return when the worker waits for work."""
    async with server.connected(database) as connection:
        with anyio.fail_after(_READY_SECONDS):
            while not (
                await connection.fetchval("select exists (select from runtime.workers)")
                if name == OURS
                else workers.starts[0].is_ready
            ):
                workers.check()
                await anyio.sleep(0.02)
