"""How are workers run? As processes of their own, each noting the starts of its handlers in a file of its own."""

import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio

from tests.bench.contestants import OURS
from tests.bench.environments import ROOT, python_of
from tests.bench.machine import cpu_seconds, memory_bytes
from tests.bench.starts import Starts

_STAND_ALONE = ("SUPABASE_", "DATABASE_URL", "RUNTIME_")


class Workers:
    """Running workers of one contestant."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.starts: list[Starts] = []

    @classmethod
    @asynccontextmanager
    async def started(
        cls,
        parent: Path,
        name: str,
        url: str,
        agents: str = "fan_out",
        *,
        count: int = 1,
        handlers: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> AsyncIterator["Workers"]:
        """Start so many, and kill what is left of them in the end.

        Args:
            parent: where their files go.
            agents: the module that ours runs.
            handlers: how many handlers it has.
            environment: of ours; says where the stream is. The direct store by `url` when None.
        """
        workers = cls(Path(tempfile.mkdtemp(dir=parent)))
        try:
            for _ in range(count):
                workers._start(name, url, agents, handlers, environment)
            yield workers
        finally:
            workers._kill()

    @property
    def count(self) -> int:
        """How many handlers have started."""
        return sum(starts.count for starts in self.starts)

    @property
    def first(self) -> int:
        """Nanoseconds of the first start; 0 before it."""
        return min((starts.first for starts in self.starts if starts.count), default=0)

    @property
    def last(self) -> int:
        """Nanoseconds of the latest start; 0 before the first."""
        return max((starts.last for starts in self.starts), default=0)

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [process.pid for process in self._processes]

    def cpu_seconds(self) -> float:
        """CPU time they have used."""
        return cpu_seconds(self.pids)

    def megabytes(self) -> float:
        """Memory they hold."""
        return memory_bytes(self.pids) / 1e6

    def check(self) -> None:
        """Raise with a worker's last words when one has ended."""
        for number, process in enumerate(self._processes):
            if process.poll() is not None:
                words = (self._folder / f"log-{number}").read_text()[-2000:]
                raise RuntimeError(f"a worker ended with code {process.returncode}: {words}")

    async def end(self) -> None:
        """Ask them to end, and wait until they have."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            await anyio.to_thread.run_sync(process.wait)

    def _start(
        self, name: str, url: str, agents: str, handlers: int, environment: Mapping[str, str] | None
    ) -> None:
        number = len(self._processes)
        path = self._folder / f"starts-{number}"
        self.starts.append(Starts.create(path))
        if name == OURS:
            module = ROOT / "tests" / "bench" / "agents" / f"{agents}.py"
            arguments = ["-m", "runtime", "run", str(module), "--quiet"]
        else:
            arguments = ["-m", "tests.bench.program", name, "work", url, str(path)]
        more = {"BENCH_STARTS": str(path), "BENCH_HANDLERS": str(handlers)}
        with (self._folder / f"log-{number}").open("wb") as log:
            process = subprocess.Popen(
                [str(python_of(name)), *arguments],
                # No .env of anybody's is read here.
                cwd=self._folder,
                env=program_environment(
                    {**({"DATABASE_URL": url} if environment is None else environment), **more}
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)

    def _kill(self) -> None:
        for process in self._processes:
            # The whole session: some start processes of their own.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def program_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every program: this checkout on the path, and nothing that names a stream elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_STAND_ALONE)}
    return {**kept, "PYTHONPATH": str(ROOT), **(more or {})}
