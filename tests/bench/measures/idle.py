"""What does a worker cost that has nothing to do? Queries, CPU and memory, with its socket live."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio

from runtime.local import keys
from tests.bench.contestants import OURS
from tests.bench.machine import Foreign
from tests.bench.measures import Scale
from tests.bench.measures.latency import ready
from tests.bench.sample import Sample
from tests.bench.server import Server, Shape
from tests.bench.workers import Workers

_REST_SECONDS = 5


async def idle(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """A worker at rest; ours by the direct store with a socket to the local stack's gateway."""
    database = await server.fresh(name, Shape())
    async with AsyncExitStack() as stack:
        environment = None
        if name == OURS:
            gateway = await stack.enter_async_context(server.gateway(database))
            environment = {
                "SUPABASE_URL": f"http://127.0.0.1:{gateway.port}",
                "SUPABASE_SERVICE_ROLE_KEY": keys.SERVICE_ROLE_KEY,
                "DATABASE_URL": database.url,
            }
        workers = await stack.enter_async_context(
            Workers.started(server.folder, name, database.url, environment=environment)
        )
        await ready(server, database, name, workers)
        await anyio.sleep(_REST_SECONDS)
        await server.log_statements(database)
        foreign = Foreign(lambda: server.pids)
        before, began = workers.cpu_seconds(), time.monotonic()
        queries = server.statements(database)
        await anyio.sleep(scale.idle_seconds)
        seconds = time.monotonic() - began
        cores = foreign.cores()
        cpu = (workers.cpu_seconds() - before) / seconds
        megabytes = workers.megabytes()
        asked = server.statements(database) - queries
    # The others' work does not count against who does nothing.
    yield Sample("idle/queries", name, asked / seconds * 10, "per 10 s", 0, {"foreign": cores})
    yield Sample("idle/CPU", name, cpu * 100, "%", cores)
    yield Sample("idle/memory", name, megabytes, "MB", 0)
