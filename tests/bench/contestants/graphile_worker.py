"""graphile-worker: on Node, with the batching of its documentation: a local queue of 500, completed jobs in batches.

Jobs are added by its SQL functions, as its documentation does from other languages.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

from tests.bench.contestants import Senders
from tests.bench.payload import payload
from tests.bench.starts import Starts

_PROGRAM = Path(__file__).with_suffix(".mjs")


class _Sender:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def one(self, number: int) -> None:
        await self._connection.execute(
            "select graphile_worker.add_job('bench', $1::json)", json.dumps(payload(number))
        )

    async def many(self, numbers: Iterable[int]) -> None:
        await self._connection.execute(
            "select graphile_worker.add_jobs(array("
            "select json_populate_record(null::graphile_worker.job_spec, j) from json_array_elements($1::json) j))",
            json.dumps([{"identifier": "bench", "payload": payload(number)} for number in numbers]),
        )


class GraphileWorker:
    """Finished jobs are deleted."""

    requirements = ("asyncpg==0.32.0", "uvloop==0.23.0")
    # The last release that runs on Node 20.
    packages = ("graphile-worker@0.17.3",)
    settings = "concurrentJobs=100, localQueue of 500, completeJobBatchDelay=0, Node"
    pending = "select exists (select from graphile_worker._private_jobs)"
    history = ()

    async def install(self, url: str) -> None:
        """Make its tables in an empty database."""
        process = await asyncio.create_subprocess_exec(*_node(), "install", url)
        if await process.wait():
            raise RuntimeError("graphile-worker could not make its tables")

    @asynccontextmanager
    async def sender(self, url: str) -> Senders:
        """Open a sender."""
        import asyncpg

        connection = await asyncpg.connect(url)
        try:
            yield _Sender(connection)
        finally:
            await connection.close()

    async def work(self, url: str, starts: Starts) -> NoReturn:
        """Handle messages for ever."""
        program = [*_node(), "work", url, str(starts.path)]
        os.execv(program[0], program)


def _node() -> list[str]:
    """Node, the program beside this file, and the folder that npm has installed the packages into."""
    from tests.bench.environments import packages_of

    node = shutil.which("node")
    assert node is not None, "npm, which installed it, came with Node"
    return [node, str(_PROGRAM), str(packages_of("graphile_worker"))]


contestant = GraphileWorker()
