"""How much of the machine does this process use?"""

from typing import Any

import psutil


class Gauges:
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
