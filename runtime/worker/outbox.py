"""The reports that wait for an exchange, and how much of them and of new work one exchange carries."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.store import Delivery, Look, Report
from runtime.worker.exchange_bounds import ExchangeBounds

_FIRST_SECONDS, _CAP_SECONDS = 0.25, 30.0


@dataclass(slots=True)
class DelayedReport:
    """A report that failed alone and waits by itself, while others go on.

    Attributes:
        tries: how often it has failed alone.
        due_at: when it is tried again.
    """

    report: Report
    tries: int = 0
    due_at: float = math.inf


class Outbox:
    """What is to be reported. Pure: time comes in as monotonic seconds.

    Args:
        request_seconds: how long one request may take.

    Attributes:
        bounds: how much one exchange carries.
    """

    def __init__(self, request_seconds: float) -> None:
        self.bounds = ExchangeBounds(request_seconds)
        self._reports: deque[Report] = deque()
        self._delayed: dict[tuple[int, int], DelayedReport] = {}
        self._reported_last = False
        # Whether the last exchange asked for less than there was room for.
        self._is_trimmed = False

    def __len__(self) -> int:
        return len(self._reports)

    @property
    def places(self) -> set[tuple[int, int]]:
        """The places of the deliveries that are to be reported."""
        return {report.delivery.place for report in self._reports}

    @property
    def delayed_until(self) -> float:
        """When the next delayed report is due."""
        return min((each.due_at for each in self._delayed.values()), default=math.inf)

    @property
    def behind(self) -> int:
        """How many reports wait that the next exchange cannot carry."""
        return max(0, len(self._reports) - self.bounds.reports)

    def add(self, report: Report) -> None:
        """Have a report wait for the next exchange."""
        self._reports.append(report)

    def take(self) -> Iterator[Report]:
        """Take as many reports as one exchange carries; at least one, where there is any."""
        size, bounds = 0, self.bounds
        for count in range(min(len(self._reports), bounds.reports)):
            size += _weight(self._reports[0])
            if size > bounds.report_bytes and count:
                return
            yield self._reports.popleft()

    def put_back(self, look: Look, by: int) -> None:
        """Have an exchange that could not be applied carried in parts, so many times smaller."""
        reports = look.reports
        if reports:
            self.bounds.shrink_reports(len(reports), sum(map(_weight, reports)), by)
        elif look.want:
            self.bounds.shrink_taking(sum(look.want.values()), by)
        self._reports.extendleft(reversed(reports))

    def delay(self, report: Report, now: float) -> DelayedReport:
        """Have a report that failed alone wait by itself, longer each time: it may not be its fault."""
        delayed = self._delayed.setdefault(report.delivery.place, DelayedReport(report))
        delayed.tries += 1
        delayed.due_at = now + min(_CAP_SECONDS, _FIRST_SECONDS * 2.0**delayed.tries)
        return delayed

    def take_delayed(self, now: float) -> Report | None:
        """Take the delayed report that is tried again by itself now, if any."""
        if not self._delayed:
            return None
        delayed = min(self._delayed.values(), key=lambda each: each.due_at)
        if now < delayed.due_at:
            return None
        delayed.due_at = math.inf
        return delayed.report

    def drop_delayed(self, delivery: Delivery) -> None:
        """Note that a delivery is reported, or given up."""
        if self._delayed:
            self._delayed.pop(delivery.place, None)

    def share(self, want: dict[int, int], *, is_alone: bool) -> dict[int, int]:
        """What to take while exchanges carry less: by turns with reports, so that neither waits for the other."""
        self._is_trimmed = False
        if not want or (self._reports and not self._reported_last):
            self._reported_last = bool(self._reports)
            return {}
        self._reported_last = False
        shared = want if is_alone else self.bounds.share(want)
        self._is_trimmed = shared != want
        return shared

    def note(self, look: Look, seconds: float) -> bool:
        """Carry more after an exchange that passed in so many seconds; returns whether it asked for too little."""
        is_trimmed, self._is_trimmed = self._is_trimmed, False
        reported = bool(look.done or look.failed)
        if self.bounds.is_narrow or is_trimmed:
            if look.want or reported:
                self.bounds.grow(reported=reported, wanted=bool(look.want), seconds=seconds)
            return is_trimmed
        return False


def _weight(report: Report) -> int:
    """How much a report adds to the body of an exchange, about."""
    return sum(map(len, report.emits)) if report.outcome is None else len(report.traceback or "")
