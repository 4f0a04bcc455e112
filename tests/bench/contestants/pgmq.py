"""pgmq: its SQL functions by its own Python client, which brings the SQL along.

It is a queue and no runner of handlers, so the loop is the bare one of its documentation: read a hundred with a
visibility timeout, handle them, delete them in one call, and wait for its NOTIFY when there was nothing. No retry,
no fence, no fan-out: what it does is the least that a worker can do.
"""

import asyncio
from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contestants import Senders
from tests.bench.payload import payload
from tests.bench.starts import Starts

_QUEUE = "bench"
_BATCH = 100
_LOOK_SECONDS = 5


class _Sender:
    def __init__(self, queue: Any) -> None:
        self._queue = queue

    async def one(self, number: int) -> None:
        await self._queue.send(_QUEUE, payload(number))

    async def many(self, numbers: Iterable[int]) -> None:
        await self._queue.send_batch(_QUEUE, [payload(number) for number in numbers])


class Pgmq:
    """Finished messages are deleted; those of the history are archived, as it does it when asked to keep them."""

    requirements = ("pgmq[async]==1.1.4", "asyncpg==0.32.0", "uvloop==0.23.0")
    settings = (
        "read 100 with vt=30, then delete_batch; enable_notify_insert without throttle, asyncpg, uvloop"
    )
    pending = "select exists (select from pgmq.q_bench)"
    history = (
        "insert into pgmq.a_bench (msg_id, read_ct, enqueued_at, vt, message) "
        "select 10000000 + g, 1, now(), now(), "
        "jsonb_build_object('number', g, 'text', repeat('x', 130)) from generate_series(1, {count}) g",
    )

    async def install(self, url: str) -> None:
        """Make its tables in an empty database."""
        import psycopg
        from pgmq.install import install_pgmq_from_sql

        with psycopg.connect(url) as connection:
            install_pgmq_from_sql(conn=connection)
            connection.commit()
            connection.execute("select pgmq.create('bench')")
            connection.execute("select pgmq.enable_notify_insert('bench', 0)")

    @asynccontextmanager
    async def sender(self, url: str) -> Senders:
        """Open a sender."""
        async with _queue(url, size=1) as (queue, _):
            yield _Sender(queue)

    async def work(self, url: str, starts: Starts) -> None:
        """Handle messages for ever."""

        async def handle(message: Any) -> None:
            starts.note(message.message["number"])

        async with _queue(url, size=3) as (queue, pool), pool.acquire() as listener:
            woken = asyncio.Event()
            await listener.add_listener("pgmq.q_bench.INSERT", lambda *_: woken.set())
            starts.note_ready()
            while True:
                woken.clear()
                messages = await queue.read(_QUEUE, vt=30, qty=_BATCH) or []
                messages = messages if isinstance(messages, list) else [messages]
                if messages:
                    await asyncio.gather(*(handle(message) for message in messages))
                    await queue.delete_batch(_QUEUE, [message.msg_id for message in messages])
                else:
                    try:
                        await asyncio.wait_for(woken.wait(), _LOOK_SECONDS)
                    except TimeoutError:
                        continue


@asynccontextmanager
async def _queue(url: str, *, size: int) -> Any:
    import asyncpg
    from pgmq.async_queue import PGMQueue

    async with asyncpg.create_pool(url, min_size=size, max_size=size) as pool:
        queue = PGMQueue(pool=pool, init_extension=False)
        await queue.init()
        yield queue, pool


contestant = Pgmq()
