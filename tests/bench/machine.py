"""Was the machine ours meanwhile? CPU time of everybody, less that of the processes under measurement."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import anyio
import psutil

_QUIET_CORES = 0.15
_QUIET_LOOK_SECONDS = 0.3


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes and of all they have started, also of children that are gone."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
            for child in process.children(recursive=True):
                with suppress(psutil.Error):
                    times = child.cpu_times()
                    total += times.user + times.system
    return total


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory that these processes and their children hold, each counted whole."""
    total = 0
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    total += each.memory_info().rss
    return total


class Foreign:
    """How many cores others have taken since this was made.

    Args:
        own: the pids that belong to the measurement, asked when needed; this process does by itself.
    """

    def __init__(self, own: Callable[[], Iterable[int]]) -> None:
        self._own = own
        self._began = time.monotonic()
        self._before = _busy_seconds() - self._own_seconds()

    def cores(self) -> float:
        """Cores, on average."""
        taken = _busy_seconds() - self._own_seconds() - self._before
        return max(0.0, taken / max(time.monotonic() - self._began, 1e-9))

    def _own_seconds(self) -> float:
        return cpu_seconds({os.getpid(), *self._own()})


async def quiet(limit_seconds: float) -> None:
    """Return when the machine idles, or at the limit."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        before = _busy_seconds()
        await anyio.sleep(_QUIET_LOOK_SECONDS)
        if (_busy_seconds() - before) / _QUIET_LOOK_SECONDS < _QUIET_CORES:
            return


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(
        times.user + times.nice + times.system + getattr(times, "irq", 0) + getattr(times, "softirq", 0)
    )
