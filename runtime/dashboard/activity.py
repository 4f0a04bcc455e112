"""The activity of the last hour by the minute, read in the background; pages show what is there."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import anyio

from runtime.client.queries import Queries
from runtime.errors import StoreError

_MINUTES = 60
_SLICE_MINUTES = 10
_KEPT_SECONDS = 3.0
_PATIENCE_SECONDS = 0.05
_RETRY_SECONDS = 2.0


@dataclass
class SubscriptionActivity:
    """The last sixty minutes of one subscription, the oldest first."""

    done: list[int] = field(default_factory=lambda: [0] * _MINUTES)
    failed: list[int] = field(default_factory=lambda: [0] * _MINUTES)
    seconds: list[float] = field(default_factory=lambda: [0.0] * _MINUTES)

    @property
    def latency(self) -> float | None:
        """The mean of the attempts that ended well, in seconds."""
        total = sum(self.done)
        if not total:
            return None
        return sum(done * each for done, each in zip(self.done, self.seconds, strict=True)) / total


class Activity:
    """The last hour of every subscription.

    An hour may hold millions of attempts, so it is read in slices, the newest first. A minute that is over never
    changes, and is read once.

    Args:
        views: the queries.
        tell: called after each new answer.

    Attributes:
        version: rises with each new answer.
    """

    def __init__(self, views: Queries, tell: Callable[[], None]) -> None:
        self._views = views
        self._tell = tell
        self._now = 0
        self._minutes: dict[int, dict[int, tuple[int, int, float]]] = {}
        # The minutes that had long ended when they were read: they do not change.
        self._settled: set[int] = set()
        self._wanted, self._begun = anyio.Event(), anyio.Event()
        self._fresh_until = 0.0
        self.version = 0

    async def get(self) -> dict[int, SubscriptionActivity]:
        """Return the known activity by the subscriptions' numbers, and let stale minutes be read again."""
        if monotonic() >= self._fresh_until:
            self._wanted.set()
        # Wait for the first answer only, and briefly.
        with anyio.move_on_after(_PATIENCE_SECONDS):
            await self._begun.wait()
        hours: dict[int, SubscriptionActivity] = defaultdict(SubscriptionActivity)
        for minute, each in self._minutes.items():
            place = minute - self._now + _MINUTES - 1
            for subscription, (done, failed, seconds) in each.items():
                hour = hours[subscription]
                hour.done[place], hour.failed[place], hour.seconds[place] = done, failed, seconds
        return dict(hours)

    async def run(self) -> None:
        """Read the activity while there are viewers, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            began = monotonic()
            try:
                # The current minute and the one before it may still change.
                await self._ask(1, 0)
                while (unknown := self._unknown()) is not None:
                    await anyio.sleep(monotonic() - began)
                    began = monotonic()
                    await self._ask(*unknown)
            except StoreError:
                # The strip of health shows the error.
                await anyio.sleep(_RETRY_SECONDS)
            # At most a tenth of the time is spent on this query.
            self._fresh_until = monotonic() + max(_KEPT_SECONDS, 10 * (monotonic() - began))

    def _unknown(self) -> tuple[int, int] | None:
        """Return the newest range of unknown minutes, by how long ago they began."""
        missing = [ago for ago in range(2, _MINUTES) if self._now - ago not in self._settled]
        if not missing:
            return None
        newest = missing[0]
        return min(newest + _SLICE_MINUTES - 1, missing[-1]), newest

    async def _ask(self, oldest: int, newest: int) -> None:
        """Read the minutes that began in a range, in minutes ago."""
        answer = await self._views.activity(oldest * 60, newest * 60 - 60 if newest else 0)
        self._now = int(answer["minute"])
        asked: dict[int, dict[int, tuple[int, int, float]]] = {
            self._now - ago: {} for ago in range(newest, oldest + 1)
        }
        for minute, subscription, done, failed, seconds in answer["minutes"]:
            asked.setdefault(minute, {})[subscription] = (done, failed, seconds)
        if any(self._minutes.get(minute, {}) != each for minute, each in asked.items()):
            self.version += 1
            self._tell()
        self._minutes |= asked
        self._minutes = {
            minute: each for minute, each in self._minutes.items() if minute > self._now - _MINUTES
        }
        self._settled |= {minute for minute in asked if minute < self._now - 1}
        self._settled = {minute for minute in self._settled if minute > self._now - _MINUTES}
        self._begun.set()
