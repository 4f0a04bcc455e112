"""DBOS: workflows of three steps from one queue, a hundred at once, a pool of twenty connections."""

import asyncio
import os
from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contestants import STEPS, Senders
from tests.bench.payload import payload
from tests.bench.starts import Starts

_VERSION = "1"


class _Sender:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def one(self, number: int) -> None:
        options = {"workflow_name": "bench", "queue_name": "bench", "app_version": _VERSION}
        await self._client.enqueue_async(options, payload(number))

    async def many(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            await self.one(number)


class Dbos:
    """Finished workflows stay as SUCCESS, with a row for each of their steps."""

    requirements = ("dbos==3.4.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0")
    settings = (
        "three steps each, worker_concurrency 100, polling_interval_sec 0.02 (default 1), pool of 20, uvloop"
    )
    pending = (
        "select exists (select from dbos.workflow_status where status in ('ENQUEUED', 'PENDING', 'DELAYED'))"
    )
    history = ()

    async def install(self, url: str) -> None:
        """Make its tables in an empty database."""

        def install() -> None:
            dbos = _launched(url, None)
            dbos.destroy()

        await asyncio.to_thread(install)

    @asynccontextmanager
    async def sender(self, url: str) -> Senders:
        """Open a sender."""
        from dbos import DBOSClient

        client = await asyncio.to_thread(lambda: DBOSClient(system_database_url=_address(url)))
        try:
            yield _Sender(client)
        finally:
            client.destroy()

    async def work(self, url: str, starts: Starts) -> None:
        """Handle messages for ever."""
        await asyncio.to_thread(_launched, url, starts)
        starts.note_ready()
        await asyncio.Event().wait()


def _launched(url: str, starts: Starts | None) -> Any:
    """DBOS with its workflow and its queue; to be called in a thread, where no loop runs."""
    from dbos import DBOS

    DBOS(
        config={
            "name": "bench",
            "system_database_url": _address(url),
            "log_level": "ERROR",
            "sys_db_pool_size": 20,
            "application_version": _VERSION,
            "executor_id": str(os.getpid()),
        }
    )

    async def handle(value: dict[str, Any]) -> None:
        assert starts is not None
        starts.note(value["number"])
        for step in steps:
            await step()

    steps = [DBOS.step(name=name)(_step) for name in STEPS]
    DBOS.workflow(name="bench")(handle)
    DBOS.launch()
    DBOS.register_queue("bench", worker_concurrency=100, polling_interval_sec=0.02)
    return DBOS


async def _step() -> int:
    return 1


def _address(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


contestant = Dbos()
