"""Refusals of a provider for its rate limit: HTTP 429, with the time from which on it lets requests through again.

Errors are known by their form: `httpx.HTTPStatusError`, and so the errors of OpenAI's and Anthropic's clients, have a
`response` with `status_code` and `headers`; those of `requests` too, and aiohttp's have `status` and `headers`
themselves. No library is imported for it.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from runtime.agent.retry import is_a, later_seconds
from runtime.tracebacks import members_of

_TOO_MANY_REQUESTS: Final = 429
# A provider that says "at once" each time would be asked without a pause.
_LEAST_SECONDS: Final = 1.0
_MOST_SECONDS: Final = 86_400.0
_SPAN: Final = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_SPAN_SECONDS: Final = (86_400, 3_600, 60, 1, 0.001)
# x-ratelimit-reset-tokens (OpenAI), anthropic-ratelimit-tokens-reset, x-ratelimit-reset (many).
_RESET: Final = re.compile(r"(?:x|anthropic)-ratelimit-(?:reset(?:-(?P<of>[a-z-]+))?|(?P<by>[a-z-]+)-reset)")
# Seconds since 1970 are beyond this, and those from now on never.
_LEAST_EPOCH: Final = 1e9
_LEAST_EPOCH_MILLISECONDS: Final = 1e12


def refused_seconds(error: BaseException, now: datetime | None = None) -> float | None:
    """Return in how many seconds a provider lets requests through again, if that is why a handler failed.

    Between a second and a day. None for any other error, for a refusal that names no time, and for a group of errors of
    which not all are refusals. A RetryLater beside them may stand: its own seconds count then.

    Args:
        error: that a handler has raised.
        now: what times are compared with where the answer has no date of its own; by default the present.
    """
    found = [_of_one(each, now or datetime.now(UTC)) for each in members_of(error)]
    seconds = [each for each in found if each is not None]
    return max(seconds) if seconds and len(seconds) == len(found) else None


def _of_one(error: BaseException, now: datetime) -> float | None:
    if not is_a(error, (Exception,)) or later_seconds(error) is not None:
        return None
    try:
        # Not by its truth: a failed response of `requests` is false.
        response: Any = error if (own := getattr(error, "response", None)) is None else own
        status = getattr(response, "status_code", None) or getattr(response, "status", None)
        if status != _TOO_MANY_REQUESTS:
            return None
        given: Mapping[Any, Any] = getattr(response, "headers", None) or {}
        headers = {str(name).lower(): str(value).strip() for name, value in given.items()}
        seconds = _asked(headers, _moment(headers.get("date", "")) or now)
    except BaseException:  # noqa: BLE001 - an error of the user's may raise anything
        return None
    return None if seconds is None else min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS)


def _asked(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds that the headers of an answer name; None where they name none."""
    if (milliseconds := _number(headers.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    if (seconds := _until(headers.get("retry-after", ""), now)) is not None:
        return seconds
    resets = [
        (found["of"] or found["by"], seconds)
        for name, value in headers.items()
        if (found := _RESET.fullmatch(name)) and (seconds := _until(value, now)) is not None
    ]
    # Of several limits the one that is used up: another one may be full again only in hours.
    used_up = [seconds for what, seconds in resets if _is_used_up(headers, what)]
    return max(used_up or [seconds for _, seconds in resets], default=None)


def _is_used_up(headers: Mapping[str, str], what: str | None) -> bool:
    end = "" if what is None else f"-{what}"
    names = (f"x-ratelimit-remaining{end}", f"anthropic-ratelimit{end}-remaining")
    return any(_number(headers.get(name, "")) == 0 for name in names)


def _until(value: str, now: datetime) -> float | None:
    """The seconds until a time as providers write it: seconds, a span such as 6m0s, a date, an epoch."""
    if (number := _number(value)) is not None:
        epoch = number / 1000 if number >= _LEAST_EPOCH_MILLISECONDS else number
        return epoch - now.timestamp() if epoch >= _LEAST_EPOCH else number
    if value and (found := _SPAN.fullmatch(value)):
        return sum(float(part or 0) * unit for part, unit in zip(found.groups(), _SPAN_SECONDS, strict=True))
    moment = _moment(value)
    return None if moment is None else (moment - now).total_seconds()


def _number(value: str) -> float | None:
    return float(value) if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", value) else None


def _moment(value: str) -> datetime | None:
    """The time that a date of HTTP or of RFC 3339 means; None for any other text."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(value)
        except (ValueError, TypeError):
            continue
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None
