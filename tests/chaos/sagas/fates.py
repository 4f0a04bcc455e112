"""What becomes of each journey, by its number."""

from enum import IntEnum


class Fate(IntEnum):
    """How a journey ends."""

    MADE = 0
    GIVEN_UP_EARLY = 1
    GIVEN_UP = 2
    NO_WAY_BACK = 3


def fate_of(number: int) -> Fate:
    """Return how the journey of this number ends."""
    return Fate(number % len(Fate))
