"""How fast does one connection send? One by one and in batches, with one subscription that gets every message."""

from collections.abc import AsyncIterator

from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.sample import Sample
from tests.bench.server import Server, Shape, call

_SINGLE_SHARE = 0.1
BATCH = 100


async def send(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """One by one, in batches of 100 and of 1,000; nobody works meanwhile."""
    for figure, batch in (
        ("send/single", 1),
        ("send/batches of 100", BATCH),
        ("send/batches of 1,000", 1000),
    ):
        database = await server.fresh(name, Shape())
        count = round(scale.messages * (_SINGLE_SHARE if batch == 1 else 1))
        await quiet(scale.quiet_seconds)
        foreign = Foreign(lambda: server.pids)
        answer = await call(name, "send", database.url, count, batch)
        yield Sample(figure, name, count / answer["seconds"], "/s", foreign.cores())
