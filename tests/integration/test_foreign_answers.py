"""An answer that is not ours, is cut off or is too large for a front: nothing is lost, doubled or failed for it."""

from collections import Counter
from typing import Any

import pytest

from tests.integration.conftest import outcomes, until
from tests.integration.fronts import EXCHANGES, SLOW, dead, echoing, fronted, none_left, results, send

pytestmark = [pytest.mark.anyio, pytest.mark.own_stack]

FOREIGN = ["", "null", "[1, 2]", "7", '{"ok": true}', "<html>"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("body", FOREIGN)
async def test_l3_a_2xx_that_is_not_ours_is_never_taken_for_an_answer(
    stack: Any, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs: Counter[int] = Counter()
    async with fronted(stack, echoing(runs)) as front:
        front.answer(body, matching="rpc/")
        await send(stack, [{"n": n} for n in range(20)])
        await until(lambda: front.struck["answer in its place"] >= 4)
        front.heal()
        await until(lambda: none_left(stack), seconds=SLOW)
        # And in the middle of everything, one after the other.
        front.answer(body, times=2, matching=EXCHANGES)
        front.truncate("requests", times=2, matching=EXCHANGES)
        await send(stack, [{"n": n} for n in range(20, 40)])
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(range(40))
    assert await results(stack) == list(range(40))
    assert "no answer of the runtime's schema" in caplog.text
    assert front.url in caplog.text


@pytest.mark.timeout(180)
async def test_l2_an_answer_that_is_too_large_for_a_front_is_had_in_parts(stack: Any) -> None:
    runs: Counter[int] = Counter()
    async with fronted(stack, echoing(runs)) as front:
        front.limit_answers(100_000, matching=EXCHANGES)
        await send(stack, [{"n": n, "padding": "y" * 30_000} for n in range(30)])
        await send(stack, [{"n": 30, "padding": "y" * 300_000}, {"n": 31}])
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter([*range(30), 31])
    errors = await dead(stack)
    assert list(errors) == [30]
    assert "does not arrive" in errors[30]
    crashed = (await outcomes(stack.admin_url))["front.echo", "crashed"]
    assert crashed == 0
