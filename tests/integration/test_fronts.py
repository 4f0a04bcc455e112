"""A body that a front refuses costs its own delivery alone, with a clear error, and everything else goes on."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from runtime import Agent, Context, Retry
from runtime.local.faults import FaultyGateway
from tests.integration.conftest import until
from tests.integration.fronts import EXCHANGES, SLOW, dead, echoing, fronted, none_left, results, send

pytestmark = [pytest.mark.anyio, pytest.mark.own_stack]

BLOCKS: dict[str, Callable[[FaultyGateway], object]] = {
    "413 by size": lambda it: it.block(413, over_bytes=1_000_000, matching=EXCHANGES),
    **{
        f"{status} by text": lambda it, status=status: it.block(status, holding="DROP TABLE", matching=EXCHANGES)
        for status in (400, 403, 406, 414, 431, 503)
    },
    "403 in JSON": lambda it: it.answer('{"message":"Forbidden"}', 403, holding="DROP TABLE", matching=EXCHANGES),
    "401 in JSON": lambda it: it.answer('{"message":"no"}', 401, holding="DROP TABLE", matching=EXCHANGES),
    "200 and a page": lambda it: it.answer("<html>Rejected</html>", holding="DROP TABLE", matching=EXCHANGES),
    "200 and nothing": lambda it: it.answer("", holding="DROP TABLE", matching=EXCHANGES),
    "204": lambda it: it.answer("", 204, holding="DROP TABLE", matching=EXCHANGES),
}  # fmt: skip


@pytest.mark.timeout(180)
@pytest.mark.parametrize("block", BLOCKS)
async def test_l2_a_body_that_a_front_refuses_costs_its_own_delivery_alone(stack: Any, block: str) -> None:
    runs: Counter[int] = Counter()
    async with fronted(stack, echoing(runs)) as front:
        BLOCKS[block](front)
        values: list[dict[str, Any]] = [{"n": n} for n in range(60)]
        values[17] = {"n": 17, "text": "'; DROP TABLE students" if "size" not in block else "x" * 2_000_000}
        await send(stack, values)
        await until(lambda: none_left(stack), seconds=SLOW)
        await send(stack, [{"n": 100}])
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(dict.fromkeys((*range(60), 100), 1))
    errors = await dead(stack)
    assert list(errors) == [17]
    status = block.split()[0]
    assert status in errors[17] or "answered with" in errors[17] or "refused the key" in errors[17]
    assert await results(stack) == [n for n in (*range(60), 100) if n != 17]


@pytest.mark.timeout(180)
async def test_l2_a_front_that_refuses_even_an_empty_exchange_is_waited_for_and_named(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runs: Counter[int] = Counter()
    async with fronted(stack, echoing(runs)) as front:
        front.block(403, matching=EXCHANGES)
        await send(stack, [{"n": n} for n in range(10)])
        await until(lambda: front.struck["refuse"] >= 5)
        assert "a proxy or a web application firewall in front of it" in caplog.text
        front.heal()
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(range(10))
    assert await results(stack) == list(range(10))
    assert await dead(stack) == {}


@pytest.mark.timeout(180)
async def test_l2_a_step_that_a_front_refuses_costs_its_own_delivery_alone(stack: Any) -> None:
    runs: Counter[int] = Counter()
    agent = Agent("front")

    @agent.on("front.task", name="echo", retry=Retry(attempts=1), concurrency=20, emits="front.result")
    async def echo(value: dict[str, Any], context: Context) -> dict[str, Any]:
        async def word() -> str:
            runs[value["n"]] += 1
            return str(value.get("text", ""))

        assert await context.step("word", word) == value.get("text", "")
        return {"n": value["n"]}

    async with fronted(stack, agent) as front:
        front.block(403, holding="DROP TABLE", matching="stream_steps")
        values: list[dict[str, Any]] = [{"n": n} for n in range(60)]
        values[17]["text"] = "'; DROP TABLE students"
        await send(stack, values)
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(range(60))
    errors = await dead(stack)
    assert list(errors) == [17]
    assert "403" in errors[17]
    assert await results(stack) == [n for n in range(60) if n != 17]
