"""The folder in which a run of the tests works: in memory where there is room, cleared in the end."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from runtime.local.test_cluster import memory_folder

_GONE_SECONDS = 120
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Workspace:
    """A temporary folder: TMPDIR of the tests, and thereby of every process that they start."""

    folder: Path

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator["Workspace"]:
        """A fresh folder that every account can use, as /tmp: PostgreSQL may run as another user than the tests."""
        folder = Path(tempfile.mkdtemp(prefix="tests-", dir=memory_folder()))
        folder.chmod(0o1777)
        try:
            yield cls(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def end_processes(self) -> list[str]:
        """Wait until no process works here, and kill the ones that stay; return their command lines."""
        deadline = time.monotonic() + _GONE_SECONDS
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        told = []
        for process in left:
            with suppress(psutil.Error):
                told.append(f"{process.pid} {' '.join(process.cmdline())}")
                process.kill()
        return told

    def _processes(self) -> list[psutil.Process]:
        return [each for each in psutil.process_iter() if self._is_at_work_here(each)]

    def _is_at_work_here(self, process: psutil.Process) -> bool:
        # PostgreSQL writes its title over its environment; its command line and working directory name its folder.
        # In a container root may read the command line of another account's process, and not the others.
        for told in (process.cmdline, process.cwd, process.environ):
            with suppress(psutil.Error):
                if str(self.folder) in str(told()):
                    return process.status() != psutil.STATUS_ZOMBIE
        return False
