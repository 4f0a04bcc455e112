"""The state of a worker's process: what it uses of the machine, and how it learns of work."""

import os
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, process_time
from typing import Any, Literal


class ProcessStats:
    """Reads what `runtime status` shows of a worker's process."""

    def __init__(self) -> None:
        self._read_at, self._cpu_seconds = monotonic(), process_time()

    def read(self) -> dict[str, Any]:
        """Return `cpu_percent` of one core since the last reading, and `rss_bytes`, the memory in use, if known."""
        since, before = self._read_at, self._cpu_seconds
        self._read_at, self._cpu_seconds = monotonic(), process_time()
        # Two readings within one tick of the clock have nothing between them.
        elapsed = max(self._read_at - since, 1e-3)
        resident = _resident_bytes()
        return {
            **({} if resident is None else {"rss_bytes": resident}),
            "cpu_percent": round(100 * (self._cpu_seconds - before) / elapsed, 1),
        }


def _resident_bytes() -> int | None:
    """The memory that this process holds; outside of Linux only psutil knows, which the extra `local` brings."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    if find_spec("psutil") is None:
        return None
    import psutil

    return int(psutil.Process().memory_info().rss)


class WakeupStatus:
    """How a worker learns of work, and since when: live, polling, or deaf (polling because a path went silent)."""

    def __init__(self) -> None:
        self._word: Literal["live", "polling", "deaf"] = "polling"
        self._since = monotonic()

    def note(self, *, is_live: bool, why: str = "") -> None:
        """Note the state, and why a path went."""
        word: Literal["live", "polling", "deaf"] = (
            "live" if is_live else "deaf" if why.startswith("deaf") else "polling"
        )
        if word != self._word:
            self._word, self._since = word, monotonic()

    def read(self) -> dict[str, Any]:
        """Return the `way_in`, and `way_in_seconds`, for how long it has been so."""
        return {"way_in": self._word, "way_in_seconds": round(monotonic() - self._since, 1)}
