"""The deliveries that a worker holds, and how long its leases on them last."""

from collections.abc import Callable, Set

from runtime.store import Delivery

# Renewal comes at a third of a lease's time; when only this share of it is left, no renewal has come through.
LAPSING_SHARE = 0.2

Place = tuple[int, int]


class Leases:
    """What is held. Pure: time comes in as monotonic seconds.

    Args:
        seconds: how long a lease lasts.
        now: the moment it begins.

    Attributes:
        held: the deliveries by their places.
        renewed_at: when leases were last renewed.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self.held: dict[Place, Delivery] = {}
        self.renewed_at = now
        self._seconds = seconds
        self._ends_at: dict[Place, float] = {}
        # Their attempts run on, and are renewed no more.
        self._given_up: set[Place] = set()

    @property
    def due_at(self) -> float:
        """When the leases are to be renewed."""
        return self.renewed_at + self._seconds / 3

    def is_due(self, now: float) -> bool:
        """Whether leases should be renewed by now."""
        return bool(self.held) and now >= self.due_at

    def take(self, delivery: Delivery, ends_at: float) -> None:
        """Hold a delivery. One that lapsed here and still runs is held anew: nothing comes of its old attempt."""
        self._given_up.discard(delivery.place)
        self.held[delivery.place] = delivery
        self._ends_at[delivery.place] = ends_at

    def renew(self, delivery: Delivery, ends_at: float) -> None:
        """Note that a lease was renewed."""
        if delivery.place in self.held:
            self._ends_at[delivery.place] = ends_at

    def let_go(self, delivery: Delivery) -> None:
        """Hold a delivery no longer, unless it was taken again meanwhile."""
        place = delivery.place
        current = self.held.get(place)
        if current is not None and current.lease == delivery.lease:
            del self.held[place]
            del self._ends_at[place]
            self._given_up.discard(place)

    def give_up(self, place: Place) -> None:
        """Renew a lease no more that is lost, while its attempt runs on."""
        if place in self.held:
            self._given_up.add(place)

    def lapsing(self, now: float, reported: Set[Place]) -> list[Delivery]:
        """Give up the leases that end soon and are not reported yet; returns the deliveries."""
        soon = now + self._seconds * LAPSING_SHARE
        ending = reported | self._given_up
        found = [
            delivery
            for place, delivery in self.held.items()
            if place not in ending and self._ends_at.get(place, soon) < soon
        ]
        self._given_up.update(delivery.place for delivery in found)
        return found

    def to_renew(self, reported: Set[Place], may: Callable[[Delivery], bool]) -> list[Delivery]:
        """The deliveries whose leases are to go on, of those that may."""
        ending = reported | self._given_up
        return [delivery for place, delivery in self.held.items() if place not in ending and may(delivery)]
