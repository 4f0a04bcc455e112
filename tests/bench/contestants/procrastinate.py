"""procrastinate: a hundred jobs at once, a pool of ten connections, woken by NOTIFY."""

from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contestants import Senders
from tests.bench.payload import payload
from tests.bench.starts import Starts


class _Sender:
    def __init__(self, task: Any) -> None:
        self._task = task

    async def one(self, number: int) -> None:
        await self._task.defer_async(value=payload(number))

    async def many(self, numbers: Iterable[int]) -> None:
        await self._task.batch_defer_async(*({"value": payload(number)} for number in numbers))


class Procrastinate:
    """Finished jobs stay for ever by default, with a row of events for each of their states."""

    requirements = ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9", "uvloop==0.23.0")
    settings = "concurrency 100, psycopg pool of 10, uvloop"
    pending = "select exists (select from procrastinate_jobs where status in ('todo', 'doing'))"
    history = (
        "set session_replication_role = replica",
        "insert into procrastinate_jobs (id, queue_name, task_name, args, status, attempts) "
        "select 10000000 + g, 'bench', 'bench', "
        "jsonb_build_object('value', jsonb_build_object('number', g, 'text', repeat('x', 130))), 'succeeded', 1 "
        "from generate_series(1, {count}) g",
        "insert into procrastinate_events (job_id, type, at) "
        "select 10000000 + g, 'succeeded', now() from generate_series(1, {count}) g",
    )

    async def install(self, url: str) -> None:
        """Make its tables in an empty database."""
        async with _app(url, size=1).open_async() as app:
            await app.schema_manager.apply_schema_async()

    @asynccontextmanager
    async def sender(self, url: str) -> Senders:
        """Open a sender."""
        app = _app(url, size=1)
        task = _task(app, None)
        async with app.open_async():
            yield _Sender(task)

    async def work(self, url: str, starts: Starts) -> None:
        """Handle messages for ever."""
        app = _app(url, size=10)
        _task(app, starts)
        async with app.open_async():
            starts.note_ready()
            await app.run_worker_async(queues=["bench"], concurrency=100, install_signal_handlers=False)


def _app(url: str, *, size: int) -> Any:
    import procrastinate

    return procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=url, min_size=size, max_size=size)
    )


def _task(app: Any, starts: Starts | None) -> Any:
    async def handle(value: dict[str, Any]) -> None:
        assert starts is not None
        starts.note(value["number"])

    return app.task(handle, name="bench", queue="bench")


contestant = Procrastinate()
