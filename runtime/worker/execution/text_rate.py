"""The rate of the broadcasts of texts, which all workers of a project share."""

from collections.abc import Callable
from time import monotonic


class SharedRate:
    """How many pieces of text a worker may broadcast now.

    When there are more texts than that, their pieces get larger and come less often.

    Args:
        per_second: how many pieces all workers together may broadcast in a second.
        clock: a monotonic time in seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = monotonic) -> None:
        self._per_second = self._share = per_second
        self._clock = clock
        self._saved = self._burst
        self._counted_at = clock()

    @property
    def _burst(self) -> float:
        # A tenth of a second's worth, so that no second has much more than the rate; and two, since parts of pieces
        # add up.
        return max(2.0, self._share / 10)

    def share_among(self, workers: int) -> None:
        """Leave the other workers their parts."""
        self._count()
        self._share = self._per_second / max(workers, 1)
        self._saved = min(self._saved, self._burst)

    def take(self, wanted: int) -> int:
        """Take so many pieces, or as many as may go out now."""
        self._count()
        taken = min(wanted, int(self._saved))
        self._saved -= taken
        return taken

    def _count(self) -> None:
        now = self._clock()
        self._saved = min(self._burst, self._saved + (now - self._counted_at) * self._share)
        self._counted_at = now
