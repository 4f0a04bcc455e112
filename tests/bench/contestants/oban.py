"""oban for Python: one queue with a limit of a hundred, and a pool of ten connections."""

import asyncio
from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contestants import Senders
from tests.bench.payload import payload
from tests.bench.starts import Starts


class _Sender:
    def __init__(self, oban: Any, new: Any) -> None:
        self._oban = oban
        self._new = new

    async def one(self, number: int) -> None:
        await self._oban.enqueue(self._new(payload(number)))

    async def many(self, numbers: Iterable[int]) -> None:
        await self._oban.enqueue_many([self._new(payload(number)) for number in numbers])


class Oban:
    """Finished jobs stay in the table as completed, and are pruned after a day."""

    requirements = ("oban==0.7.0", "psycopg[binary,pool]==3.3.9", "uvloop==0.23.0")
    settings = "queue limit 100, psycopg pool of 10, uvloop"
    pending = "select exists (select from oban_jobs where state in ('available', 'executing'))"
    history = (
        "insert into oban_jobs (state, queue, worker, attempt, args, attempted_by, attempted_at, completed_at) "
        "select 'completed', 'bench', 'Bench', 1, "
        "jsonb_build_object('number', g, 'text', repeat('x', 130)), '{{node}}', "
        "timezone('UTC', now()), timezone('UTC', now()) from generate_series(1, {count}) g",
    )

    async def install(self, url: str) -> None:
        """Make its tables in an empty database."""
        from oban.schema import install

        async with _pool(url, size=1) as pool:
            await install(pool)

    @asynccontextmanager
    async def sender(self, url: str) -> Senders:
        """Open a sender."""
        from oban import Oban

        async with _pool(url, size=1) as pool:
            yield _Sender(Oban(pool=pool), _worker(None).new)

    async def work(self, url: str, starts: Starts) -> None:
        """Handle messages for ever."""
        from oban import Oban

        _worker(starts)
        async with _pool(url, size=10) as pool, Oban(pool=pool, queues={"bench": 100}):
            starts.note_ready()
            await asyncio.Event().wait()


def _worker(starts: Starts | None) -> Any:
    from oban import worker

    @worker(queue="bench")
    class Bench:
        async def process(self, job: Any) -> None:
            assert starts is not None
            starts.note(job.args["number"])

    return Bench


@asynccontextmanager
async def _pool(url: str, *, size: int) -> Any:
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(url, min_size=size, max_size=size, open=False) as pool:
        await pool.wait()
        yield pool


contestant = Oban()
