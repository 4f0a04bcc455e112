"""The bounds of an exchange: less after one that could not be applied, more again with each that passes.

Pure. Whatever refuses, cuts or loses an exchange for what is in it is found by carrying less: the half, or an eighth
where each try takes long, in the end a single report or a single delivery.
"""

from collections.abc import Mapping

MAX_REPORTS = 500
# Far from the database an exchange carries what runs in a round trip; nearby the next one leaves soon.
_REPORTS_A_SECOND = 50_000
_MAX_REPORTS_FAR = 4_096
MAX_REPORT_BYTES = 8_000_000
_MAX_TAKEN = 4_096
# The bound that the database sets by itself.
_MAX_ANSWER_BYTES = 8_000_000
# An exchange that took longer than this share of a request's time is not made larger.
_QUICK_SHARE = 0.25


class ExchangeBounds:
    """The bounds of one exchange.

    Args:
        request_seconds: how long one request may take.

    Attributes:
        reports: how many reports.
        report_bytes: how many bytes of them, but for the first.
        is_narrow: whether anything is bounded more than usually. Then reports travel apart from what is taken, so that
            what fails shows which of the two it was.
    """

    def __init__(self, request_seconds: float) -> None:
        self.reports = self._most_reports = MAX_REPORTS
        self.report_bytes = MAX_REPORT_BYTES
        self.is_narrow = False
        self._quick_seconds = request_seconds * _QUICK_SHARE
        self._taken = _MAX_TAKEN
        self._answer_bytes = _MAX_ANSWER_BYTES
        self._turn = 0

    @property
    def answer_bytes(self) -> int | None:
        """How large an answer may be; None leaves that to the database."""
        return self._answer_bytes if self._answer_bytes < _MAX_ANSWER_BYTES else None

    def lengthen(self, road_seconds: float) -> None:
        """Fit what an exchange may carry to a road that takes so many seconds there and back."""
        most = max(MAX_REPORTS, min(_MAX_REPORTS_FAR, int(road_seconds * _REPORTS_A_SECOND)))
        if not self.is_narrow:
            self.reports = most
        self._most_reports = most

    def shrink_reports(self, count: int, size: int, by: int) -> None:
        """Carry less after an exchange with so many reports of so many bytes, which could not be applied."""
        self.reports = max(1, min(count, self.reports) // by)
        self.report_bytes = max(1, min(size, self.report_bytes) // by)
        self.is_narrow = True

    def shrink_taking(self, count: int, by: int) -> None:
        """Take less after an answer with so many deliveries, which did not arrive."""
        self._taken = max(1, min(count, self._taken) // by)
        self._answer_bytes = max(1, self._answer_bytes // by)
        self.is_narrow = True

    def grow(self, *, reported: bool, wanted: bool, seconds: float) -> None:
        """Carry more after an exchange that passed in so many seconds."""
        if seconds > self._quick_seconds:
            return
        if reported:
            self.reports = min(self._most_reports, self.reports * 2)
            self.report_bytes = min(MAX_REPORT_BYTES, self.report_bytes * 2)
        if wanted:
            self._taken = min(_MAX_TAKEN, self._taken * 2)
            self._answer_bytes = min(_MAX_ANSWER_BYTES, self._answer_bytes * 2)
        self.is_narrow = (self.reports, self.report_bytes, self._taken, self._answer_bytes) != (
            self._most_reports, MAX_REPORT_BYTES, _MAX_TAKEN, _MAX_ANSWER_BYTES,
        )  # fmt: skip

    def share(self, want: Mapping[int, int]) -> dict[int, int]:
        """As much of what is wanted as one exchange takes, by turns: no subscription holds up another."""
        lanes = list(want)
        self._turn += 1
        turn = self._turn % max(1, len(lanes))
        each = max(1, self._taken // max(1, len(lanes)))
        left = self._taken
        shared: dict[int, int] = {}
        for number in (*lanes[turn:], *lanes[:turn]):
            if (amount := min(want[number], each, left)) > 0:
                shared[number] = amount
                left -= amount
        return shared
