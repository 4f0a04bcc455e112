"""How long does it take to begin? The import, the command line, and from a worker's start to its first handler."""

import subprocess
import time
from collections.abc import AsyncIterator
from statistics import median

import anyio

from tests.bench.contestants import OURS
from tests.bench.environments import ROOT, python_of
from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.sample import Sample
from tests.bench.server import Server, Shape
from tests.bench.workers import Workers, program_environment

_TIMES = 5
_COMMANDS = {
    "python alone": ["-c", "pass"],
    "import runtime": ["-c", "import runtime"],
    "runtime --help": ["-m", "runtime", "--help"],
}


async def start_up(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Whole processes, from their start to their end; the interpreter's own part is told beside them."""
    await quiet(scale.quiet_seconds)
    foreign = Foreign(lambda: server.pids)
    if name == OURS:
        for label, arguments in _COMMANDS.items():
            seconds = [await _seconds(arguments) for _ in range(_TIMES)]
            yield Sample(f"start-up/{label}", name, median(seconds) * 1e3, "ms", foreign.cores())
    database = await server.fresh(name, Shape(queued=1))
    began = time.monotonic_ns()
    async with Workers.started(server.folder, name, database.url) as workers:
        while not workers.count:
            workers.check()
            await anyio.sleep(0.002)
        milliseconds = (workers.first - began) / 1e6
    yield Sample("start-up/worker to first handler", name, milliseconds, "ms", foreign.cores())


async def _seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    await anyio.run_process(
        [str(python_of(OURS)), *arguments],
        env=program_environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began
