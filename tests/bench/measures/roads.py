"""What does a long road to the database cost? The same work, and 0, 5, 20 or 60 ms each way to where it is stored."""

from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlsplit

from runtime.local import keys
from tests.bench.contestants import OURS
from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.measures.drain import drained
from tests.bench.measures.latency import paced
from tests.bench.measures.sending import BATCH
from tests.bench.sample import Sample
from tests.bench.server import Server, Shape, call

ONE_WAY: Final = (0.0, 0.005, 0.02, 0.06)
# At such a pace a worker is idle again before the next message, however long the road.
_IDLE_TRIPS: Final = 6
_FEWER: Final = 5


async def roads(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """A drain, the idle latency of a worker at the far end, and sends from there; over a connection to the database."""
    for seconds in ONE_WAY:
        async with server.road(None, seconds) as port:
            where = f"{seconds * 2000:g} ms away"
            shape = Shape(queued=scale.messages)
            database = await server.fresh(name, shape)
            url = _over(database.url, port)
            yield await drained(
                server, scale, name, shape, f"roads/drain, {where}", database=database, url=url
            )
            database = await server.fresh(name, Shape())
            gap = max(0.02, seconds * 2 * _IDLE_TRIPS)
            async for sample in paced(
                server, scale, name, database, f"roads/idle, {where}",
                url=_over(database.url, port), count=max(1, scale.paced // _FEWER), gap=gap,
            ):  # fmt: skip
                yield sample
            for batch, count in ((1, scale.messages // 200), (BATCH, scale.messages // 10)):
                database = await server.fresh(name, Shape())
                await quiet(scale.quiet_seconds)
                foreign = Foreign(lambda: server.pids)
                answer = await call(name, "send", _over(database.url, port), count, batch)
                figure = f"roads/send of {batch}, {where}"
                yield Sample(figure, name, count / answer["seconds"], "/s", foreign.cores())


async def roads_rest(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """A drain and the idle latency over the REST API of the local stack, woken over Realtime."""
    for seconds in ONE_WAY:
        where = f"{seconds * 2000:g} ms away"
        shape = Shape(queued=scale.messages)
        database = await server.fresh(name, shape)
        async with server.gateway(database) as gateway, server.road(gateway.port, seconds) as port:
            yield await drained(
                server, scale, name, shape, f"roads/REST drain, {where}",
                environment=_rest(port), database=database,
            )  # fmt: skip
        database = await server.fresh(OURS, Shape())
        async with server.gateway(database) as gateway, server.road(gateway.port, seconds) as port:
            async for sample in paced(
                server, scale, name, database, f"roads/REST idle, {where}", environment=_rest(port),
                count=max(1, scale.paced // _FEWER), gap=max(0.02, seconds * 2 * _IDLE_TRIPS),
            ):  # fmt: skip
                yield sample


def _over(url: str, port: int) -> str:
    """The address of the same database at the end of a road."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()


def _rest(port: int) -> dict[str, str]:
    return {
        "SUPABASE_URL": f"http://127.0.0.1:{port}",
        "SUPABASE_SERVICE_ROLE_KEY": keys.SERVICE_ROLE_KEY,
    }
