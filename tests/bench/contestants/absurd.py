"""Absurd: tasks of three steps; a hundred at once, its tables from the SQL that its own command brings."""

from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contestants import STEPS, Senders
from tests.bench.payload import payload
from tests.bench.starts import Starts


class _Sender:
    def __init__(self, app: Any) -> None:
        self._app = app

    async def one(self, number: int) -> None:
        await self._app.spawn("bench", payload(number), queue="bench")

    async def many(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            await self.one(number)


class Absurd:
    """Finished tasks, their runs and their checkpoints stay until they are cleaned up."""

    requirements = ("absurd-sdk==0.5.1", "absurdctl==0.5.1", "psycopg[binary]==3.3.9", "uvloop==0.23.0")
    settings = "three steps a task, concurrency and batch_size 100, poll_interval 0.02 (default 0.25), uvloop"
    pending = "select exists (select from absurd.t_bench where state in ('pending', 'running', 'sleeping'))"
    history = ()

    async def install(self, url: str) -> None:
        """Make its tables in an empty database."""
        import absurdctl
        import psycopg

        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
            await connection.execute("select absurd.create_queue('bench')")

    @asynccontextmanager
    async def sender(self, url: str) -> Senders:
        """Open a sender."""
        app = _app(url)
        try:
            yield _Sender(app)
        finally:
            await app.close()

    async def work(self, url: str, starts: Starts) -> None:
        """Handle messages for ever."""
        app = _app(url)

        @app.register_task("bench", queue="bench")  # type: ignore[untyped-decorator, unused-ignore]
        async def handle(value: dict[str, Any], context: Any) -> None:
            starts.note(value["number"])
            for name in STEPS:
                await context.step(name, _step)

        starts.note_ready()
        await app.start_worker(concurrency=100, batch_size=100, poll_interval=0.02)


async def _step() -> int:
    return 1


def _app(url: str) -> Any:
    from absurd_sdk import AsyncAbsurd

    return AsyncAbsurd(url, queue_name="bench")


contestant = Absurd()
