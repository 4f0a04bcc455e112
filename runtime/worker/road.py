"""How long an exchange is on the way to the database and back, at the least.

Pure: time comes in as monotonic seconds. The least of the last exchanges, as congestion control estimates the time of a
path (the round-trip propagation time of BBR): what an exchange takes beyond it is work, and queues on the way.
"""

import math

# A path may change, and the least of an hour ago says nothing any more.
_WINDOW_SECONDS = 30.0


class Road:
    """The way to the database.

    Args:
        now: the moment it begins, in monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._least = self._least_before = math.inf
        self._turns_at = now + _WINDOW_SECONDS

    @property
    def seconds(self) -> float:
        """The least that an exchange took lately; 0 before the first."""
        least = min(self._least, self._least_before)
        return 0.0 if least == math.inf else least

    def note(self, seconds: float, now: float) -> None:
        """Take note of an exchange that took so many seconds."""
        if now >= self._turns_at:
            self._least, self._least_before = math.inf, self._least
            self._turns_at = now + _WINDOW_SECONDS
        self._least = min(self._least, seconds)
