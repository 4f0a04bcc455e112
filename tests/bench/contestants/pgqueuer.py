"""pgqueuer: one queue manager on one asyncpg connection, woken by NOTIFY, a hundred jobs a batch."""

import json
from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contestants import Senders
from tests.bench.payload import payload
from tests.bench.starts import Starts

_ENTRYPOINT = "bench"


class _Sender:
    def __init__(self, queries: Any) -> None:
        self._queries = queries

    async def one(self, number: int) -> None:
        await self._queries.enqueue(_ENTRYPOINT, json.dumps(payload(number)).encode(), 0)

    async def many(self, numbers: Iterable[int]) -> None:
        bodies = [json.dumps(payload(number)).encode() for number in numbers]
        await self._queries.enqueue([_ENTRYPOINT] * len(bodies), bodies, [0] * len(bodies))


class Pgqueuer:
    """Finished jobs leave the queue, and a row of the log says so."""

    requirements = ("pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0")
    settings = "batch_size=100, one queue manager a process, asyncpg, uvloop"
    pending = "select exists (select from pgqueuer)"
    history = (
        "insert into pgqueuer_log (created, job_id, status, priority, entrypoint, aggregated) "
        "select now() - interval '1 hour', 10000000 + g, 'successful', 0, 'bench', true "
        "from generate_series(1, {count}) g",
    )

    async def install(self, url: str) -> None:
        """Make its tables in an empty database."""
        import asyncpg
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        connection = await asyncpg.connect(url)
        await Queries(AsyncpgDriver(connection)).install()
        await connection.close()

    @asynccontextmanager
    async def sender(self, url: str) -> Senders:
        """Open a sender."""
        import asyncpg
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        connection = await asyncpg.connect(url)
        try:
            yield _Sender(Queries(AsyncpgDriver(connection)))
        finally:
            await connection.close()

    async def work(self, url: str, starts: Starts) -> None:
        """Handle messages for ever."""
        import asyncpg
        from pgqueuer import PgQueuer
        from pgqueuer.db import AsyncpgDriver

        queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))

        async def handle(job: Any) -> None:
            starts.note(json.loads(job.payload)["number"])

        queue.entrypoint(_ENTRYPOINT)(handle)
        starts.note_ready()
        await queue.run(batch_size=100)


contestant = Pgqueuer()
