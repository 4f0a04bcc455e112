"""Spans and moments as people write them, `90s`, `12h`, `7d` or a date, and amounts as they read them."""

from datetime import UTC, datetime, timedelta

import typer

from runtime.agent.schedule import is_span, seconds_of
from runtime.client.queries import two_figures
from runtime.message import moment as moment_of


def span(text: str) -> float:
    """Return the seconds that `90`, `90s`, `15m`, `12h`, `7d` or `2w` mean.

    Raises:
        typer.BadParameter: it is none of these.
    """
    try:
        return seconds_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def moment(text: str) -> datetime:
    """Return the time that a date means, or a span of time before now. A time without a zone is local.

    Raises:
        typer.BadParameter: it is neither.
    """
    if is_span(text):
        return datetime.now(UTC) - timedelta(seconds=span(text))
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; write 2h for two hours ago, or a date as in 2026-11-23T08:00"
        ) from None


def duration(seconds: float) -> str:
    """Return seconds in the unit a person would use."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def took(seconds: float) -> str:
    """Return how long an attempt took."""
    return (
        f"{seconds * 1000:.1f} ms"
        if seconds < 1
        else f"{seconds:.1f} s"
        if seconds < 120
        else duration(seconds)
    )


def amount(number: int, *, is_about: bool) -> str:
    """Return a number with separated thousands, and a sign before an estimate."""
    return f"≈{two_figures(number):,}" if is_about and number > 1000 else f"{number:,}"


def counted(number: int, one: str, several: str | None = None, *, is_about: bool = False) -> str:
    """Return a number with its noun, in the singular where it is one."""
    return f"{amount(number, is_about=is_about)} {one if number == 1 else several or f'{one}s'}"


def ago(moment: str) -> str:
    """Return how long ago a time in ISO 8601 was."""
    return f"{duration(max(0.0, (datetime.now(UTC) - moment_of(moment)).total_seconds()))} ago"


def until(moment: str) -> str:
    """Return in how long a time in ISO 8601 comes."""
    seconds = (moment_of(moment) - datetime.now(UTC)).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else "now"


def clock(moment: datetime) -> str:
    """Return the local time of day; in UTC at the ends of Python's years, where local time may lie beyond them."""
    try:
        moment = moment.astimezone()
    except (OverflowError, ValueError, OSError):
        moment = moment.astimezone(UTC)
    return f"{moment:%H:%M:%S}"
