"""The pace of polling while no push path is live: fast after activity, slower when idle, up to a bound."""

from random import Random

_GROWTH = 1.5
_JITTER = 0.1


class Pace:
    """An adaptive interval.

    Args:
        fast: seconds between looks right after activity.
        slow: seconds between looks when nothing happens; the interval grows up to it.
        random: the source of jitter, so that many workers do not look at the same moment.
    """

    def __init__(self, fast: float, slow: float, random: Random | None = None) -> None:
        self._fast = fast
        self._slow = slow
        self._random = random or Random()
        self._seconds = fast

    def active(self) -> None:
        """Something happened: look fast again."""
        self._seconds = self._fast

    def next_seconds(self) -> float:
        """Return how long to wait before the next look."""
        seconds = self._seconds
        self._seconds = min(self._slow, seconds * _GROWTH)
        return min(self._slow, seconds * (1 + self._random.uniform(-_JITTER, _JITTER)))
