"""Backoff with full jitter, and the loop that tries again."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import anyio

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

# A process that lived for so long and dies then is in no crash loop.
_STABLE_SECONDS = 30.0
_FIRST_SECONDS = 0.5
_CAP_SECONDS = 30.0
_MOST_DEATHS = 5


def backoff_seconds(attempt: int, *, first: float, cap: float, random: Random) -> float:
    """Return the delay before the next attempt, in seconds.

    Any time up to the doubled delay, so that what failed together does not return together.
    """
    # An exponent of 1024 or more overflows a float; there may be ten thousand attempts.
    doublings = min(max(attempt - 1, 0), 1000)
    return random.uniform(0, min(cap, first * 2.0**doublings))


class Outage:
    """The failures since something last worked: which kinds of trouble were logged, and how long to wait.

    Args:
        first: the longest first pause, in seconds.
        cap: the longest pause of all.
        steady_seconds: how long it has to work before a failure is followed by a first pause again.

    Attributes:
        failures: how many there were in a row.
    """

    def __init__(
        self,
        *,
        first: float = 0.2,
        cap: float = 10.0,
        steady_seconds: float = 0.0,
        random: Random | None = None,
    ) -> None:
        self.failures = 0
        self._first = first
        self._cap = cap
        self._steady_seconds = steady_seconds
        self._random = random or Random()
        self._logged: set[str] = set()
        self._worked_at: float | None = None

    def __bool__(self) -> bool:
        return bool(self._logged)

    def is_news(self, kind: str) -> bool:
        """Return whether trouble of this kind is the first of its kind in this outage, and is to be logged."""
        is_news = kind not in self._logged
        self._logged.add(kind)
        return is_news

    def level(self, kind: str, first: int) -> int:
        """Return the level to log a trouble at: `first` for the first of its kind, DEBUG after that."""
        return first if self.is_news(kind) else logging.DEBUG

    def over(self) -> bool:
        """Note that it works: any trouble is news from now on. Returns whether trouble was logged."""
        had_trouble = bool(self._logged)
        self._logged.clear()
        if self._worked_at is None:
            self._worked_at = time.monotonic()
        return had_trouble

    def pause_seconds(self, cap: float | None = None) -> float:
        """Count a failure, and return how long to wait before the next try.

        Args:
            cap: the longest pause for this failure, if it has one of its own.
        """
        if self._worked_at is not None and time.monotonic() - self._worked_at >= self._steady_seconds:
            self.failures = 0
        self._worked_at = None
        self.failures += 1
        return backoff_seconds(
            self.failures, first=self._first, cap=self._cap if cap is None else cap, random=self._random
        )


async def retrying(
    step: Callable[[], Awaitable[T]],
    outage: Outage,
    *,
    on: type[E] | tuple[type[E], ...],
    say: Callable[[E], None],
    stopped: anyio.Event | None = None,
) -> T:
    """Await the step again and again until it succeeds, and return its result.

    Only the errors in `on` are caught: any other one, and a cancellation, ends the loop at once.

    Args:
        step: makes one try.
        outage: the failures so far; over when the step succeeds.
        on: the errors after which it is tried again.
        say: logs an error; called once an outage for each text.
        stopped: ends the pauses.

    Raises:
        E: the last error, when `stopped` is set.
    """
    while True:
        try:
            result = await step()
        except on as error:
            if outage.is_news(str(error)):
                say(error)
            with anyio.move_on_after(outage.pause_seconds()):
                await (stopped.wait() if stopped else anyio.sleep_forever())
            if stopped is not None and stopped.is_set():
                raise
        else:
            outage.over()
            return result


@dataclass(slots=True)
class Restarts:
    """The waits before a dead process is started again. Pure: how long it lived goes in, a wait comes out.

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
