"""Does the harness do for a user's test what it says: send, drain, advance, and say what is wrong?"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime import Agent, Context, Message, Reject, Retry
from runtime.testing import Harness, NotDrained
from tests.integration.conftest import connected

pytestmark = pytest.mark.anyio


agent = Agent("shop")


@agent.on("order.placed", emits="order.packed")
async def pack(order: dict[str, int]) -> dict[str, int]:
    """Pack an order."""
    if order["items"] < 0:
        raise Reject("nobody can pack that")
    return {"parcels": order["items"]}


@agent.on("order.packed", retry=Retry(attempts=3, first_seconds=3600, cap_seconds=3600))
def ship(message: Message[dict[str, int]], context: Context) -> None:
    """Ship at the second attempt."""
    if context.attempt == 1:
        raise ConnectionError("the lorry is late")
    context.emit("order.shipped", message.value, delay=86_400)


async def test_a_chain_is_driven_through_retries_and_delays_without_waiting(harness: Harness) -> None:
    async with harness.running(agent):
        sent = await harness.send("order.placed", {"items": 2})
        await harness.drain()
        (packed,) = await harness.assert_emitted("order.packed", {"parcels": 2})
        assert packed.parent_id == sent.id
        assert await harness.messages("order.shipped") == []
        await harness.advance(3600)
        await harness.drain()
        (shipped,) = await harness.assert_emitted("order.shipped")
        assert shipped.deliver_at is not None
        assert shipped.deliver_at > datetime.now(UTC) + timedelta(hours=23)
        await harness.advance(86_400)
        (shipped,) = await harness.messages("order.shipped")
        assert shipped.deliver_at is not None
        assert shipped.deliver_at <= datetime.now(UTC)
    await harness.assert_no_dead_letters()


async def test_dead_letters_are_returned_whole_and_asserted_against(harness: Harness) -> None:
    async with harness.running(agent):
        await harness.send("order.placed", {"items": -1})
        await harness.drain()
    (letter,) = await harness.dead_letters("shop.pack")
    assert letter["error"] == "Reject: nobody can pack that"
    assert letter["message"]["value"] == {"items": -1}
    assert await harness.dead_letters("shop.ship") == []
    with pytest.raises(
        AssertionError, match=r"(?s)shop\.pack on #1: Reject: nobody can pack that.*Traceback"
    ):
        await harness.assert_no_dead_letters()


async def test_expired_messages_are_not_delivered(harness: Harness) -> None:
    seen = []
    late = Agent("late")

    @late.on("k")
    async def note(value: int) -> None:
        seen.append(value)

    async with harness.running(late):
        await harness.send("k", 1, delay=60, expires_in=30)
        await harness.send("k", 2, delay=60, expires_in=90)
        await harness.advance(61)
        await harness.drain()
    assert seen == [2]


async def test_what_does_not_drain_is_named(harness: Harness) -> None:
    stuck = Agent("stuck")
    began, release = anyio.Event(), anyio.Event()

    @stuck.on("k", concurrency=1)
    async def wait() -> None:
        began.set()
        await release.wait()

    async with harness.running(stuck):
        await harness.send("k")
        await harness.send("k")
        with anyio.fail_after(60):
            await began.wait()
        with pytest.raises(
            NotDrained, match=r"Work was left after 0\.2 s:\nstuck\.wait: 1 waiting, 1 running"
        ):
            await harness.drain(seconds=0.2)
        release.set()
        await harness.drain()
    await harness.send("k")
    with pytest.raises(NotDrained, match=r"stuck\.wait: 1 waiting, 0 running\nNo agent runs here"):
        await harness.drain(seconds=0)


async def test_a_wrong_count_shows_what_there_is(harness: Harness) -> None:
    await harness.send("a.b", {"n": 1})
    with pytest.raises(AssertionError, match=r'0 messages under a\.b with the value \{"n":2\}, not 1'):
        await harness.assert_emitted("a.b", {"n": 2})
    with pytest.raises(
        AssertionError, match=r'(?s)0 messages under c\.d, not 1\. There are:\n#1 a\.b \{"n":1\}'
    ):
        await harness.assert_emitted("c.d")
    assert await harness.assert_emitted("c.d", times=0) == []


def test_the_plugin_is_there_for_any_project(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from runtime import Agent

        agent = Agent("writer")

        @agent.on("note.found", emits="note.read")
        async def read(note: str) -> str:
            return note.upper()

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.mark.anyio
        @pytest.mark.parametrize("number", [1, 2])
        async def test_read(harness, number):
            async with harness.running(agent):
                await harness.send("note.found", "hello")
                await harness.drain()
            await harness.assert_emitted("note.read", "HELLO")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q")
    result.assert_outcomes(passed=2)


def test_the_tests_of_the_page_on_testing_pass_as_they_stand_there(pytester: pytest.Pytester) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "testing.md").read_text()
    files = re.findall(r"```python\n# (?:tests/)?(\w+)\.py\n(.*?)```", page, re.DOTALL)
    pytester.makepyfile(**dict(files))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q")
    count = sum(text.count("async def test_") for _, text in files)
    assert count
    result.assert_outcomes(passed=count)


def test_a_run_of_tests_that_does_not_ask_for_it_loads_nothing_of_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing():
            assert not {"asyncpg", "psutil", "runtime.testing", "runtime.settings"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q").assert_outcomes(passed=1)


async def test_agents_are_tested_under_faults(harness: Harness) -> None:
    async with harness.faults() as faults, harness.running(agent, lease_seconds=5) as worker:
        # Each report is carried out, and its answer is lost on the way.
        faults.lose_answer(times=3, matching="stream_exchange")
        await harness.send("order.placed", {"items": 1})
        await harness.drain()
        await harness.assert_emitted("order.packed", {"parcels": 1})
        assert faults.struck["lose the answer"] == 3

        faults.freeze("requests")
        await harness.send("order.placed", {"items": 2})
        with pytest.raises(NotDrained, match="pack: 1 waiting"):
            await harness.drain(seconds=0.5)
        faults.heal()
        await harness.drain()
        await harness.assert_emitted("order.packed", times=2)
        assert worker.counts.get("refused", 0) == 0
    async with harness.running(agent):
        await harness.send("order.placed", {"items": 3})
        await harness.drain()
    await harness.assert_no_dead_letters()


async def test_a_test_decides_and_lets_the_time_of_a_sleep_pass(harness: Harness) -> None:
    agent = Agent("shop")

    @agent.on("refund.wanted", emits="refund.made")
    async def refund(cents: int, context: Context) -> int:
        await context.sleep("2h")
        decision = await context.approve("Refund it?", answer=int)
        return decision.answer if decision else 0

    async with harness.running(agent):
        await harness.send("refund.wanted", 120)
        await harness.drain(seconds=60)
        await harness.advance(7_200)
        with pytest.raises(AssertionError, match=r"No handler has asked Another\? in 0.01 s"):
            await harness.decide(title="Another?", seconds=0.01)
        asked = await harness.decide(answer=60, seconds=60)
        assert asked["title"] == "Refund it?"
        await harness.drain(seconds=60)
    await harness.assert_emitted("refund.made", 60)


async def test_a_handler_is_killed_after_each_of_its_steps_and_one_that_minds_is_found_out(
    harness: Harness,
) -> None:
    careful, careless = Agent("careful"), Agent("careless")
    charged, begun = list[int](), list[int]()

    def charge(order: int) -> int:
        charged.append(order)
        return order

    async def note(connection: Any, order: int) -> int:
        await connection.execute("insert into public.orders values ($1)", order)
        return order

    @careful.on("order.placed", emits="order.paid")
    def pay(order: int, context: Context) -> int:
        context.step_blocking("note", lambda connection: connection.fetchval("select 1"), transaction=True)
        return int(context.step_blocking("charge", charge, order)) + 1

    @careful.on("order.placed", emits="order.noted")
    async def book(order: int, context: Context) -> int:
        return await context.step("book", note, order, transaction=True)

    @careless.on("order.returned", emits="order.refunded")
    async def refund(order: int, context: Context) -> int:
        begun.append(order)
        await context.step("look", lambda: None)
        return len(begun)

    async with connected(harness._admin_url) as connection, harness.running(careful, careless):
        await connection.execute("create table public.orders (number integer)")
        await harness.assert_same_end("order.placed", 7)
        # Once undisturbed, and once for each of three steps, two of them kept by a transaction.
        assert charged == [7] * 4
        assert await connection.fetchval("select count(*) from public.orders") == 4
        with pytest.raises(AssertionError, match="came to another end"):
            await harness.assert_same_end("order.returned", 7)
        assert len(begun) == 3
        with pytest.raises(AssertionError, match="No attempt died after ship"):
            async with harness.crash_after("ship"):
                pass
