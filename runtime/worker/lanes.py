"""The capacity of a worker: how many deliveries to take for each subscription."""

from collections.abc import Mapping
from dataclasses import dataclass

_PREFETCH_SECONDS = 0.05
_PREFETCH_LIMIT = 400


@dataclass(slots=True)
class Lane:
    """One subscription's share of this worker.

    Attributes:
        limit: how many of its handlers may run at once.
        in_threads: whether they run in threads, so that a blocked loop does not hold them up.
        held: deliveries taken whose attempts have not ended.
        pace: how many it finishes in a second, lately.
        finished: how many it has finished since the pace was measured.
        takes_ahead: whether to take more than can begin at once; not where all workers share a limit.
    """

    limit: int
    in_threads: bool = False
    held: int = 0
    pace: float = 0.0
    finished: int = 0
    takes_ahead: bool = True

    def room(self) -> int:
        """How many more to take: free slots, and what the measured pace drains in a moment."""
        if self.limit == 0:
            return 0
        ahead = min(_PREFETCH_LIMIT, int(self.pace * _PREFETCH_SECONDS)) if self.takes_ahead else 0
        return max(0, self.limit + ahead - self.held)


class Lanes(dict[int, Lane]):
    """The lanes of a worker by the numbers of their subscriptions.

    Args:
        lanes: the first of them; more may be added.
        now: the moment it begins, in monotonic seconds.
    """

    def __init__(self, lanes: Mapping[int, Lane], now: float) -> None:
        super().__init__(lanes)
        self._paced_at = now

    def rooms(self, *, renews_async: bool) -> dict[int, int]:
        """How many more to take for each; nothing could begin on a loop that is blocked."""
        return {
            number: room
            for number, lane in self.items()
            if (room := lane.room()) > 0 and (renews_async or lane.in_threads)
        }

    def note_paces(self, now: float) -> None:
        """Measure the paces, if the last measurement is not too recent."""
        elapsed = now - self._paced_at
        if elapsed < _PREFETCH_SECONDS / 5:
            return
        for lane in self.values():
            lane.pace = 0.5 * lane.pace + 0.5 * lane.finished / elapsed
            lane.finished = 0
        self._paced_at = now
