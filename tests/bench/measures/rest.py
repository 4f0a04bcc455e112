"""How fast is a queue emptied without a connection to the database? Over the REST API of the local stack."""

from collections.abc import AsyncIterator

from runtime.local import keys
from tests.bench.measures import Scale
from tests.bench.measures.drain import drained
from tests.bench.sample import Sample
from tests.bench.server import Server, Shape


async def rest(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """One worker, and the gateway's share of the CPU that all sides took."""
    shape = Shape(queued=scale.messages)
    database = await server.fresh(name, shape)
    async with server.gateway(database) as gateway:
        environment = {
            "SUPABASE_URL": f"http://127.0.0.1:{gateway.port}",
            "SUPABASE_SERVICE_ROLE_KEY": keys.SERVICE_ROLE_KEY,
        }
        sample = await drained(
            server, scale, name, shape, "drain/REST, 1 worker", environment=environment, database=database
        )
    yield sample
    sides = {side: sample.more[f"{side} cpu"] for side in ("worker", "database", "gateway")}
    share = 100 * sides["gateway"] / max(sum(sides.values()), 1e-9)
    yield Sample("drain/REST, gateway's share of CPU", name, share, "%", sample.foreign, sides)
