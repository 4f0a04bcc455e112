"""How is this process? What it uses of the machine, and how it hears of work."""

from time import monotonic
from typing import Any, Literal

import psutil


class ProcessStats:
    """Reads what `runtime status` shows of a worker's process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        # The first reading has nothing to compare with.
        self._process.cpu_percent()

    def read(self) -> dict[str, Any]:
        """Return `rss_bytes`, the memory in use, and `cpu_percent` of one core since the last reading."""
        return {
            "rss_bytes": self._process.memory_info().rss,
            "cpu_percent": round(self._process.cpu_percent(), 1),
        }


class WakeupStatus:
    """How a worker hears of work, and since when: live, polling, or deaf: polling, since a path kept silent."""

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
