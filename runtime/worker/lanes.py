"""The capacity of a worker: how many deliveries to take for each subscription."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.store import ExchangeAnswer, Look
from runtime.worker.road import Road

_PREFETCH_SECONDS = 0.05
_PREFETCH_LIMIT = 400
# From such a round trip on the road decides how much to take ahead. What an exchange brings runs while the next one is
# under way, and that one leaves before it has run: two round trips, and as much again to grow by.
_FAR_SECONDS = 0.02
_FAR_TRIPS = 4
_FAR_LIMIT = 8_192


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
        surge: how many to take ahead while it is not known how many run in a round trip.
        has_run: whether any has finished since the last exchange.
    """

    limit: int
    in_threads: bool = False
    held: int = 0
    pace: float = 0.0
    finished: int = 0
    takes_ahead: bool = True
    surge: int = 0
    has_run: bool = False

    def room(self, road_seconds: float = 0.0, behind: int = 0) -> int:
        """How many more to take: free slots, and what the measured pace drains in a moment, or in some round trips.

        Args:
            road_seconds: how long a round trip to the database takes.
            behind: how many reports wait that the next exchange cannot carry; the more, the less is taken ahead.
        """
        if self.limit == 0 or not self.takes_ahead:
            ahead = 0
        elif road_seconds < _FAR_SECONDS:
            ahead = min(_PREFETCH_LIMIT, int(self.pace * _PREFETCH_SECONDS))
        else:
            ahead = min(_FAR_LIMIT, max(int(self.pace * road_seconds * _FAR_TRIPS), self.surge))
        return max(0, self.limit + max(0, ahead - behind) - self.held)

    def note_finished(self) -> None:
        """Take note that an attempt has ended."""
        self.held -= 1
        self.finished += 1
        self.has_run = True

    def note_taken(self, amount: int, wanted: int) -> None:
        """Take note of what an exchange brought, of so many that it had asked for.

        Where all has run out before an exchange is back, the next one asks for twice as many, as in the slow start of
        TCP; once it has not, the pace is known.
        """
        has_run_out = self.has_run and self.held == 0
        self.surge = 3 * amount if has_run_out and amount >= wanted > 0 else 0
        self.held += amount
        self.has_run = False


class Lanes(dict[int, Lane]):
    """The lanes of a worker by the numbers of their subscriptions.

    Args:
        lanes: the first of them; more may be added.
        now: the moment it begins, in monotonic seconds.
        lease_seconds: how long a lease lasts: what is taken ahead is to run within a third of it.

    Attributes:
        road: the way to the database.
    """

    def __init__(self, lanes: Mapping[int, Lane], now: float, lease_seconds: float = math.inf) -> None:
        super().__init__(lanes)
        self._longest_seconds = lease_seconds / 3 / _FAR_TRIPS
        self.road = Road(now)
        self._paced_at = now

    def rooms(self, behind: int, *, renews_async: bool) -> dict[int, int]:
        """How many more to take for each; nothing could begin on a loop that is blocked."""
        road_seconds = min(self.road.seconds, self._longest_seconds)
        return {
            number: room
            for number, lane in self.items()
            if (room := lane.room(road_seconds, behind)) > 0 and (renews_async or lane.in_threads)
        }

    def note_exchange(self, look: Look, answer: ExchangeAnswer, *, sent_at: float, now: float) -> None:
        """Take note of what an exchange brought, and when."""
        self.road.note(now - sent_at, now)
        taken = Counter(delivery.subscription for delivery in answer.taken)
        for number in {*taken, *look.want}:
            self[number].note_taken(taken[number], look.want.get(number, 0))
        self._note_paces(now)

    def _note_paces(self, now: float) -> None:
        """Measure the paces, if the last measurement is not too recent."""
        elapsed = now - self._paced_at
        if elapsed < _PREFETCH_SECONDS / 5:
            return
        for lane in self.values():
            lane.pace = 0.5 * lane.pace + 0.5 * lane.finished / elapsed
            lane.finished = 0
        self._paced_at = now
