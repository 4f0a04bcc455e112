"""Whether a server runs on a data folder: `postmaster.pid` alone cannot tell, since it outlives a crash."""

import os
import signal
import time
from pathlib import Path
from typing import Final

import psutil

from runtime.errors import LocalStackError

_GONE_SECONDS: Final = 30
_LOOK_SECONDS: Final = 0.02


class Postmaster:
    """The server process on one data folder, if there is one.

    Args:
        data: the data folder.
        cluster_name: stands in the titles of the server's processes.
    """

    def __init__(self, data: Path, cluster_name: str) -> None:
        self._data = data
        self._cluster_name = cluster_name
        self._file = data / "postmaster.pid"

    @property
    def pid(self) -> int | None:
        """Return the pid of the running server, or None; a stale file is recognised."""
        pid = self._recorded_pid()
        return pid if pid is not None and self._is_ours(pid) else None

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
            self._wait_gone([pid])

    def forget_the_dead(self) -> None:
        """After a crash: wait until the server's children have ended too, then drop its pid file.

        PostgreSQL takes any living process of that number for a server on this folder, so the file must not stay;
        and it must not go as long as a child still writes.

        Raises:
            LocalStackError: the children do not end.
        """
        if self._recorded_pid() is not None:
            self._wait_gone([process.pid for process in psutil.process_iter() if self._is_ours(process.pid)])
            self._file.unlink(missing_ok=True)

    def _recorded_pid(self) -> int | None:
        try:
            return int(self._file.read_text().partition("\n")[0])
        except (OSError, ValueError):
            return None

    def _is_ours(self, pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            try:
                return bool(process.cwd() == str(self._data))
            except psutil.AccessDenied:
                # Root in a container may not look into processes of another account; their titles it may read.
                title = " ".join(process.cmdline())
                return "postgres" in title and (str(self._data) in title or self._cluster_name in title)
        except psutil.Error:
            return False

    def _wait_gone(self, pids: list[int]) -> None:
        deadline = time.monotonic() + _GONE_SECONDS
        while left := [pid for pid in pids if self._is_ours(pid)]:
            if time.monotonic() > deadline:
                raise LocalStackError(
                    f"Processes of a PostgreSQL that has ended still use {self._data}: "
                    f"{', '.join(map(str, left))}. End them and start again."
                )
            time.sleep(_LOOK_SECONDS)
