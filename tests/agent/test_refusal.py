"""When does a provider let requests through again? In any of the forms in which providers say so."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import ClassVar

import httpx
import pytest

from runtime import Retry, RetryLater
from runtime.agent.refusal import refused_seconds

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=90)


def refusal(status: int = 429, **headers: str) -> httpx.HTTPStatusError:
    """The error of a client for an answer with these headers, `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx.Response(status, headers=named, request=httpx.Request("POST", "https://model.test/"))
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    return caught.value


class OfAnotherClient(Exception):
    """As aiohttp's: the answer's status and headers are its own."""

    status = 429
    headers: ClassVar = {"Retry-After": "7"}


class FalseResponse(dict[str, str]):
    """As that of `requests`: false where its status is an error's."""

    status_code = 429
    headers: ClassVar = {"Retry-After": "8"}


class OfRequests(Exception):
    response = FalseResponse()


class Hostile(Exception):
    @property
    def response(self) -> None:
        raise RuntimeError("closed")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "20"}, 20),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "2500", "retry_after": "3"}, 2.5),
        ({"retry_after": format_datetime(LATER, usegmt=True)}, 90),
        # By the clock of whoever says it.
        ({"retry_after": format_datetime(LATER), "date": format_datetime(NOW + timedelta(seconds=60))}, 30),
        ({"x_ratelimit_reset_requests": "6m0s", "x_ratelimit_reset_tokens": "12ms"}, 360),
        ({"x_ratelimit_reset_requests": "1h2m3.5s"}, 3723.5),
        (
            {"x_ratelimit_reset_requests": "6h0m0s", "x_ratelimit_remaining_requests": "99",
             "x_ratelimit_reset_tokens": "17s", "x_ratelimit_remaining_tokens": "0"}, 17,
        ),
        (
            {"anthropic_ratelimit_requests_reset": LATER.isoformat(), "anthropic_ratelimit_requests_remaining": "5",
             "anthropic_ratelimit_input_tokens_reset": (NOW + timedelta(seconds=45)).strftime("%Y-%m-%dT%H:%M:%SZ"),
             "anthropic_ratelimit_input_tokens_remaining": "0"}, 45,
        ),
        ({"x_ratelimit_reset": str(int(LATER.timestamp()))}, 90),
        ({"x_ratelimit_reset": str(int(LATER.timestamp() * 1000)), "x_ratelimit_remaining": "0"}, 90),
        # Never without a pause, and no further than a day.
        ({"retry_after": "0"}, 1),
        ({"retry_after": format_datetime(NOW - timedelta(days=1), usegmt=True)}, 1),
        ({"retry_after": "99999999"}, 86_400),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-5"}, None),
        ({"retry_after": "nan"}, None),
        ({"x_ratelimit_reset_tokens": ""}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_a_429_says_when_it_is_over(headers: dict[str, str], seconds: float | None) -> None:
    found = refused_seconds(refusal(**headers), NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_only_refusals_count_and_a_group_only_as_a_whole() -> None:
    assert refused_seconds(refusal(503, retry_after="20")) is None
    assert refused_seconds(ValueError("429")) is None
    assert refused_seconds(Hostile()) is None
    assert refused_seconds(RetryLater(5)) is None
    assert refused_seconds(OfAnotherClient()) == 7
    assert refused_seconds(OfRequests()) == 8
    both = ExceptionGroup(
        "two", [refusal(retry_after="20"), ExceptionGroup("one", [refusal(retry_after="30")])]
    )
    assert refused_seconds(both) == 30
    assert refused_seconds(ExceptionGroup("two", [refusal(retry_after="20"), ValueError()])) is None


def test_what_a_retry_rules_out_may_not_follow() -> None:
    error = refusal(retry_after="20")
    assert Retry(attempts=1).may_follow(error)
    assert not Retry(never_on=(httpx.HTTPError,)).may_follow(error)
    assert not Retry(on=(OSError,)).may_follow(error)
