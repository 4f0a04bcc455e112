"""Retries: which errors, how often, and a wait that neither grows without end nor comes back as a crowd."""

import math
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Agent, Reject, Retry, RetryLater
from runtime.backoff import backoff_seconds
from runtime.errors import DeclarationError, InvalidPayload

seconds = st.floats(min_value=0, max_value=1e300)


@given(attempt=st.integers(min_value=1, max_value=10_000), first=seconds, cap=seconds, seed=st.integers())
def test_the_wait_lies_between_zero_and_the_capped_doubling(
    attempt: int, first: float, cap: float, seed: int
) -> None:
    wait = backoff_seconds(attempt, first=first, cap=cap, random=Random(seed))
    assert math.isfinite(wait)
    assert 0 <= wait <= cap
    if attempt <= 100:
        assert wait <= first * 2.0 ** (attempt - 1)


def test_attempt_ten_thousand_does_not_overflow_and_waits_up_to_the_cap() -> None:
    waits = [backoff_seconds(10_000, first=0.001, cap=300, random=Random(seed)) for seed in range(200)]
    assert max(waits) > 250
    assert min(waits) < 50


def test_a_failed_crowd_is_spread_over_the_whole_wait() -> None:
    random = Random(7)
    waits = sorted(backoff_seconds(4, first=1, cap=300, random=random) for _ in range(1000))
    assert waits[0] < 0.1
    assert waits[-1] > 7.9
    assert 3.5 < waits[500] < 4.5


class _Busy(ConnectionError): ...


@pytest.mark.parametrize(
    ("retry", "error", "attempt", "again"),
    [
        (Retry(), ValueError(), 1, True),
        (Retry(), ValueError(), 4, True),
        (Retry(), ValueError(), 5, False),
        (Retry(attempts=1), ValueError(), 1, False),
        (Retry(on=(ConnectionError,)), _Busy(), 1, True),
        (Retry(on=(ConnectionError,)), ValueError(), 1, False),
        (Retry(never_on=(ConnectionError,)), _Busy(), 1, False),
        (Retry(on=(_Busy,), never_on=(ConnectionError,)), _Busy(), 1, False),
        (Retry(on=(ConnectionError,), never_on=(_Busy,)), ConnectionError(), 1, True),
        (Retry(), Reject("no such page"), 1, False),
        (Retry(on=(Reject,)), Reject(), 1, False),
        (Retry(), InvalidPayload("title: missing"), 1, False),
        (Retry(), KeyboardInterrupt(), 1, False),
        (Retry(on=()), ValueError(), 1, False),
    ],
)
def test_whether_it_is_tried_again(retry: Retry, error: BaseException, attempt: int, again: bool) -> None:
    assert (retry.decide(error, attempt, Random(1)) is not None) is again


def test_retry_later_waits_as_asked_even_after_the_last_attempt() -> None:
    retry = Retry(attempts=1, cap_seconds=10, never_on=(RetryLater,))
    assert retry.decide(RetryLater(3600, "rate limited"), 99, Random(1)) == 3600.0


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "5", None])
def test_retry_later_refuses_what_is_no_delay(wrong: float) -> None:
    with pytest.raises(ValueError, match="RetryLater needs seconds"):
        RetryLater(wrong)


def test_reject_and_retry_later_say_why() -> None:
    assert str(Reject("the page is gone")) == "the page is gone"
    assert str(RetryLater(2, "rate limited")) == "rate limited (in 2 s)"


@pytest.mark.parametrize(
    "fields",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"attempts": True},
        {"first_seconds": -1},
        {"first_seconds": math.nan},
        {"cap_seconds": math.inf},
        {"on": ValueError},
        {"on": ("ValueError",)},
        {"never_on": [ValueError]},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_where_it_is_written(fields: dict[str, object]) -> None:
    with pytest.raises(DeclarationError, match=rf"Retry\({next(iter(fields))}="):
        Retry(**fields)  # type: ignore[arg-type]


EXTREMES = [float("inf"), float("nan"), -1, 1e300, 10**9 + 1, 10**400, True, "five", None, -float("inf")]


@pytest.mark.parametrize("given", EXTREMES, ids=lambda given: repr(given)[:12])
def test_v5_extreme_figures_of_a_retry_are_refused_at_once(given: Any) -> None:
    for name in ("attempts", "first_seconds", "cap_seconds"):
        with pytest.raises(DeclarationError, match=rf"Retry\({name}=…\) must be"):
            Retry(**{name: given})


@pytest.mark.parametrize("given", EXTREMES, ids=lambda given: repr(given)[:12])
def test_v5_extreme_figures_of_a_declaration_are_refused_at_once(given: Any) -> None:
    for name in ("timeout", "concurrency", "concurrency_total", "rate", "batch"):
        if given is not None:
            with pytest.raises(DeclarationError, match=rf"@agent\.on\({name}=…\) must be"):
                Agent("a").on("a.b", **{name: given})
    if given is not None:
        with pytest.raises(DeclarationError, match=r"@agent\.on\(within=…\) must be"):
            Agent("a").on("a.b", batch=5, within=given)
    with pytest.raises(DeclarationError, match=r"@agent\.every\(…\) takes whole seconds"):
        Agent("a").every(given)
    with pytest.raises(DeclarationError, match=r"@agent\.cron"):
        Agent("a").cron(given)
    with pytest.raises(DeclarationError, match=r"timezone"):
        Agent("a").cron("0 7 * * *", timezone=given)


@pytest.mark.parametrize("seconds", [1e300, 10**400])
def test_v5_a_later_that_is_too_far_away_is_a_year_and_keeps_its_words(seconds: float) -> None:
    later = RetryLater(seconds, "the shop is closed")
    assert later.seconds == 366 * 86_400
    assert "the shop is closed" in str(later)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1, True, "5", None])
def test_v5_a_later_that_is_none_is_refused_with_its_words(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"seconds of 0 or more.*\(the shop is closed\)"):
        RetryLater(seconds, "the shop is closed")
