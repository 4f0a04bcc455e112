"""The slots of timers, from an interval or a cron expression: pure, the same in every worker."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from runtime.agent.retry import is_number, short_repr
from runtime.errors import DeclarationError

Missed = Literal["one", "all", "none"]

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
MISSED: tuple[Missed, ...] = get_args(Missed)
_SPAN_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
# The fields of a cron expression as cronsim calls them, and what each may hold.
_FIELDS = (
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day-of-month", "1 to 31, L"),
    ("month", "1 to 12, jan to dec"),
    ("day-of-week", "0 to 7, sun to sat"),
)
_WINDOWS = [timedelta(hours=1), *(timedelta(days=days) for days in (1, 32, 366, 366 * 9))]


@dataclass(frozen=True, slots=True)
class Tick:
    """The value of a timer's message.

    Attributes:
        slot: the scheduled time, however late the message was written.
        schedule: the timer's name, `agent.handler`.
        missed: how many slots right before it got no tick because no worker ran; counted to a thousand.
    """

    slot: datetime
    schedule: str
    missed: int = 0


class Schedule(ABC):
    """The times at which a timer ticks."""

    @property
    @abstractmethod
    def spec(self) -> str:
        """The schedule as text, equal for equal schedules; `read_schedule` understands it."""

    @abstractmethod
    def next(self, after: datetime) -> datetime:
        """Return the first slot later than `after`, in UTC."""

    @abstractmethod
    def last(self, after: datetime, until: datetime) -> datetime | None:
        """Return the last slot later than `after` and not later than `until`, in UTC, if there is one."""

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the slots later than `after` and not later than `until`, in UTC."""
        while (slot := self.next(after)) <= until:
            yield slot
            after = slot


@dataclass(frozen=True, slots=True)
class Every(Schedule):
    """A tick every so many whole seconds, counted from 1970 in UTC: workers and restarts agree on the slots."""

    seconds: int

    @property
    def spec(self) -> str:
        """Such as `every 300`."""
        return f"every {self.seconds}"

    def next(self, after: datetime) -> datetime:
        """Return the next multiple."""
        return datetime.fromtimestamp((int(after.timestamp()) // self.seconds + 1) * self.seconds, UTC)

    def last(self, after: datetime, until: datetime) -> datetime | None:
        """Return the last multiple."""
        slot = datetime.fromtimestamp(int(until.timestamp()) // self.seconds * self.seconds, UTC)
        return slot if slot > after else None


@dataclass(frozen=True, slots=True)
class Cron(Schedule):
    """A cron expression in a time zone, as Debian's cron reads it.

    When the clocks go forward, a skipped time of day runs right after the gap; when they go back, a time of day that
    comes twice runs once. Expressions with a star for the minute or the hour follow the time that passes.
    """

    expression: str
    timezone: str

    @property
    def spec(self) -> str:
        """Such as `cron 0 7 * * mon-fri Europe/Paris`."""
        return f"cron {self.expression} {self.timezone}"

    def next(self, after: datetime) -> datetime:
        """Return the next time of the expression."""
        for slot in self._from(after):
            if slot > after:
                return slot
        raise ValueError(f"{self.expression!r} never occurs")

    def last(self, after: datetime, until: datetime) -> datetime | None:
        """Return the last time of the expression."""
        # Forwards, from ever earlier starts: cronsim treats a change of the clocks differently when it goes backwards.
        for window in _WINDOWS:
            begin = max(after, until - window)
            found: datetime | None = None
            for slot in self.between(begin, until):
                found = slot
            if found is not None or begin == after:
                return found
        return None

    def _from(self, after: datetime) -> Iterator[datetime]:
        for moment in CronSim(self.expression, after.astimezone(ZoneInfo(self.timezone))):
            yield moment.astimezone(UTC)


def readable(spec: str) -> str:
    """Return a schedule's text as people write it: `every 5m`, `0 7 * * mon-fri Europe/Paris`."""
    kind, _, rest = spec.partition(" ")
    if kind == "cron":
        return rest
    if kind != "every" or not rest.isdecimal():
        # Written by another release.
        return spec
    seconds = int(rest)
    unit, size = next((unit, size) for unit, size in _UNITS.items() if seconds % size == 0)
    return f"every {seconds // size}{unit}"


def every(interval: str | float | timedelta) -> Every:
    """Return the schedule of an interval.

    Args:
        interval: `"90s"`, `"5m"`, `"12h"`, `"1d"`, a number of seconds, or a timedelta; whole seconds.

    Raises:
        DeclarationError: it is none of these, or shorter than a second.
    """
    wrong = DeclarationError(
        '@agent.every(…) takes whole seconds, 1 or more, such as "90s", "5m", "12h" or 300, not '
        f"{short_repr(interval)}."
    )
    try:
        if isinstance(interval, timedelta):
            interval = interval.total_seconds()
        seconds = seconds_of(interval) if isinstance(interval, str) else interval
        if not is_number(seconds):
            raise wrong
        whole = int(seconds)
    except (ValueError, OverflowError):
        raise wrong from None
    if whole != seconds or not 1 <= whole <= 366 * 86_400:
        raise wrong
    return Every(whole)


def cron(expression: str, timezone: str) -> Cron:
    """Return the schedule of a cron expression.

    Args:
        expression: five fields: minute, hour, day of the month, month, day of the week.
        timezone: a name of the IANA database, such as Europe/Paris.

    Raises:
        DeclarationError: there is no such zone, or the expression makes no sense or never occurs.
    """
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, TypeError, OSError):
        raise DeclarationError(
            f'@agent.cron(timezone=…) must be a name such as "Europe/Paris" or "UTC", not {timezone!r}.'
        ) from None
    fields = expression.split() if isinstance(expression, str) else []
    if len(fields) != 5:
        raise DeclarationError(
            f"@agent.cron(…) takes five fields, minute, hour, day, month, day of the week, "
            f'such as "0 7 * * mon-fri", not {expression!r}.'
        )
    found = Cron(" ".join(fields).lower(), timezone)
    try:
        found.next(datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise DeclarationError(f"@agent.cron({expression!r}): {_wrong_field(fields, str(error))}") from None
    except (ValueError, RuntimeError):
        raise DeclarationError(f"@agent.cron({expression!r}) never occurs.") from None
    return found


def _wrong_field(fields: Sequence[str], complaint: str) -> str:
    """Say which field of a cron expression is wrong, what it holds and what it may hold."""
    for place, (field, (name, allowed)) in enumerate(zip(fields, _FIELDS, strict=True)):
        if complaint.lower() == f"bad {name}":
            if _is_good(["*"] * place + [field] + ["*"] * (4 - place)):
                return f"there is no day {field} in the month {fields[3]}."
            return f"the {name.replace('-', ' ')} cannot be {field!r}; it may be {allowed}, *, a list or a range."
    return f"{complaint.lower()}."


def _is_good(fields: Sequence[str]) -> bool:
    try:
        CronSim(" ".join(fields).lower(), datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError:
        return False
    return True


def upcoming(spec: str, last: datetime, now: datetime, count: int) -> list[datetime]:
    """Return the next slots of a schedule; none if another release wrote its spec.

    Args:
        spec: the schedule as text.
        last: the last slot that has ticked.
        now: the current time.
        count: how many slots.
    """
    schedule = read_schedule(spec)
    far = datetime.max.replace(tzinfo=UTC)
    return [] if schedule is None else list(islice(schedule.between(max(now, last), far), count))


def read_schedule(spec: str) -> Schedule | None:
    """Return the schedule of a spec, or None for a spec of another release."""
    if found := re.fullmatch(r"every (\d+)", spec):
        return Every(int(found[1]))
    if found := re.fullmatch(r"cron ((?:\S+ ){5})(\S+)", spec):
        try:
            return cron(found[1], found[2])
        except DeclarationError:
            return None
    return None


def is_span(text: str) -> bool:
    """Whether the text is a span of time, such as 15m."""
    return _SPAN.fullmatch(text.strip().lower()) is not None


def seconds_of(text: str) -> float:
    """Return the seconds of a span of time, such as 15m.

    Raises:
        ValueError: the text is no span.
    """
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is no span of time; write 90s, 15m, 12h, 7d or 2w")
    return float(found[1]) * _SPAN_SECONDS[found[2] or "s"]
