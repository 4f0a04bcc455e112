"""Trying again: what is logged, how long the pauses are, and what ends the loop."""

import logging
from collections.abc import Sequence
from random import Random

import anyio
import pytest

from runtime.backoff import Outage, retrying


class _Longest(Random):
    def uniform(self, _low: float, high: float) -> float:
        return high


def _outage(**options: float) -> Outage:
    return Outage(**options, random=_Longest())


class _Step:
    """Fails with each of these texts in turn, then succeeds."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    async def __call__(self) -> str:
        if self.texts:
            raise OSError(self.texts.pop(0))
        return "done"


def test_pauses_double_up_to_the_cap_and_begin_anew_after_a_success() -> None:
    outage = _outage(first=1, cap=5)
    assert [outage.pause_seconds() for _ in range(5)] == [1, 2, 4, 5, 5]
    assert outage.failures == 5
    outage.over()
    assert [outage.pause_seconds(), outage.pause_seconds(cap=0.5)] == [1, 0.5]


def test_a_success_that_does_not_last_leaves_the_pauses_long() -> None:
    outage = _outage(first=1, cap=5, steady_seconds=60)
    outage.pause_seconds()
    outage.over()
    assert outage.pause_seconds() == 2


def test_a_success_that_lasts_makes_the_pauses_short(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("runtime.backoff.time.monotonic", lambda: now)
    outage = _outage(first=1, cap=5, steady_seconds=60)
    outage.pause_seconds()
    outage.over()
    now = 150.0
    outage.over()
    now = 161.0
    assert outage.pause_seconds() == 1


def test_each_kind_of_trouble_is_news_once_an_outage() -> None:
    outage = Outage()
    assert [outage.is_news(kind) for kind in "abab"] == [True, True, False, False]
    assert outage.level("a", logging.WARNING) == logging.DEBUG
    assert outage.over()
    assert not outage.over()
    assert outage.level("a", logging.WARNING) == logging.WARNING


async def test_a_step_is_tried_until_it_succeeds_and_each_trouble_is_said_once() -> None:
    said: list[str] = []
    outage = Outage(first=0.001, cap=0.001)
    step = _Step(["away", "broken", "away"])
    assert await retrying(step, outage, on=OSError, say=lambda error: said.append(str(error))) == "done"
    assert said == ["away", "broken"]
    assert not outage


async def test_another_error_ends_it_at_once() -> None:
    outage = Outage(first=60, cap=60)
    with pytest.raises(OSError, match="away"):
        await retrying(_Step(["away"]), outage, on=ValueError, say=lambda _: None)
    assert not outage.failures


async def test_a_stop_ends_the_pause_with_the_last_error() -> None:
    stopped = anyio.Event()
    with anyio.fail_after(5), pytest.raises(OSError, match="away"):
        await retrying(
            _Step(["away"]),
            _outage(first=60, cap=60),
            on=OSError,
            say=lambda _: stopped.set(),
            stopped=stopped,
        )


@pytest.mark.parametrize("texts", [["away"], []])
async def test_a_cancellation_passes_through_the_pause_and_the_step(texts: Sequence[str]) -> None:
    step = _Step(texts)

    async def forever() -> None:
        await step()
        await anyio.sleep_forever()

    passed = False
    with anyio.move_on_after(0.05) as scope:
        await retrying(forever, _outage(first=60, cap=60), on=Exception, say=lambda _: None)
        passed = True
    assert scope.cancelled_caught
    assert not passed
