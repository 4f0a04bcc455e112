"""Backoff with full jitter."""

from dataclasses import dataclass, field
from random import Random

# A process that lived so long was well: what ends it then is no crash loop.
_STABLE_SECONDS = 30.0
_FIRST_SECONDS = 0.5
_CAP_SECONDS = 30.0
_MOST_DEATHS = 5


def backoff_seconds(attempt: int, *, first: float, cap: float, random: Random) -> float:
    """Full jitter: any moment up to the doubled delay, so a failed crowd does not return as one."""
    # The exponent is held below 1024, where a float ends: the ten-thousandth attempt must not overflow.
    doublings = min(max(attempt - 1, 0), 1000)
    return random.uniform(0, min(cap, first * 2.0**doublings))


@dataclass(slots=True)
class Restarts:
    """When is a dead process started again? Pure: how long it lived goes in, a wait comes out.

    Attributes:
        deaths: how many times in a row it died young.
    """

    is_patient: bool = False
    random: Random = field(default_factory=Random)
    deaths: int = 0

    def died(self, lived_seconds: float) -> float | None:
        """Return the seconds to wait before the next start, or None: it is a crash loop, give up."""
        self.deaths = self.deaths + 1 if lived_seconds < _STABLE_SECONDS else 1
        if self.deaths >= _MOST_DEATHS and not self.is_patient:
            return None
        return backoff_seconds(self.deaths, first=_FIRST_SECONDS, cap=_CAP_SECONDS, random=self.random)
