"""What an agent sets up: before its first handler, once, down again after the last, and what if that fails?"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from runtime import Agent, Context
from runtime.errors import DeclarationError, LifespanFailed
from runtime.local.bootstrap import connected
from runtime.testing import Harness
from runtime.worker.serverless import drain
from runtime.worker.sleep import Phase
from tests.worker.execution.test_executor import Stage

pytestmark = pytest.mark.anyio


def declared(name: str, lifespan: Any, events: list[Any], **options: Any) -> Agent:
    """An agent that notes what it is given and the state it has then."""
    agent = Agent(name)
    agent.lifespan(lifespan)

    @agent.on(f"{name}.in", **options)
    async def note(value: Any, context: Context) -> None:
        events.append((value, context.state))

    return agent


async def test_it_starts_before_the_first_handler_and_ends_after_the_last(harness: Harness) -> None:
    events: list[Any] = []

    async def opened() -> AsyncIterator[str]:
        events.append("up")
        await anyio.sleep(0.05)
        yield "pool"
        await anyio.lowlevel.checkpoint()
        events.append("down")

    await harness.send("shop.in", 0)
    async with harness.running(declared("shop", opened, events, start="earliest")):
        await harness.send("shop.in", 1)
        await harness.drain()
        await harness.send("shop.in", 2)
        await harness.drain()
        assert events == ["up", (0, "pool"), (1, "pool"), (2, "pool")]
        await harness.send("shop.in", 3)
    assert events[-1] == "down"
    assert events.count("up") == events.count("down") == 1
    await harness.assert_no_dead_letters()


async def test_a_function_that_returns_a_context_manager_will_do(harness: Harness) -> None:
    events: list[Any] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[str]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            yield "tasks"
            tasks.cancel_scope.cancel()

    async with harness.running(declared("shop", opened, events)):
        await harness.send("shop.in", 1)
        await harness.drain()
    assert events == [(1, "tasks")]


async def test_g6_one_that_fails_holds_up_no_other_agent_and_its_messages_wait(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Any] = []
    tries = 0

    async def failing() -> AsyncIterator[str]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionError("the warehouse is closed")
        yield "open at last"

    quick = Agent("quick")

    @quick.on("shop.in")
    async def note(value: int) -> None:
        events.append(value)

    async with harness.running(declared("shop", failing, events), quick) as worker:
        await harness.send("shop.in", 1)
        await harness.drain()
        assert worker.counts["taken"] == 2
    assert sorted(map(str, events)) == ["(1, 'open at last')", "1"]
    failures = [each.getMessage() for each in caplog.records if each.name == "runtime.worker.lifespan"]
    assert len(failures) == 2
    assert failures[0].startswith(
        "the lifespan of shop failed: ConnectionError: the warehouse is closed; its messages wait"
    )
    assert [letter["error"] for letter in await harness.dead_letters()] == []


async def test_where_no_agent_is_left_the_worker_ends_and_no_attempt_is_spent(harness: Harness) -> None:
    events: list[Any] = []

    async def failing() -> AsyncIterator[None]:
        raise ConnectionError("the warehouse is closed")
        yield

    async def fine() -> AsyncIterator[str]:
        yield "fine"

    with pytest.raises(BaseExceptionGroup) as caught:
        async with harness.running(declared("shop", failing, events)):
            await anyio.sleep_forever()
    assert caught.group_contains(
        LifespanFailed, match="every lifespan failed.*shop: ConnectionError: the ware"
    )
    await harness.send("shop.in", 1)
    async with harness.running(declared("shop", fine, events)):
        await harness.drain()
    assert events == [(1, "fine")]


async def test_one_that_breaks_while_it_runs_is_entered_again_and_handlers_that_run_finish(
    harness: Harness,
) -> None:
    events: list[Any] = []
    breaking, going_on = anyio.Event(), anyio.Event()
    number = 0

    async def opened() -> AsyncIterator[int]:
        nonlocal number
        number += 1
        async with anyio.create_task_group() as tasks:
            if number == 1:
                tasks.start_soon(break_down)
            yield number

    async def break_down() -> None:
        await breaking.wait()
        raise ConnectionError("the pool is gone")

    shop, other = Agent("shop"), Agent("other")
    shop.lifespan(opened)

    @shop.on("shop.in", concurrency=1)
    async def note(value: int, context: Context) -> None:
        events.append((value, context.state))
        if value == 1:
            await going_on.wait()

    @other.on("other.in")
    async def ignore() -> None: ...

    async with harness.running(shop, other):
        await harness.send("shop.in", 1)
        await harness.send("shop.in", 2)
        with anyio.fail_after(60):
            while not events:
                await anyio.sleep(0.005)
        breaking.set()
        with anyio.fail_after(60):
            while number < 2:
                await anyio.sleep(0.005)
        going_on.set()
        await harness.drain()
    assert events == [(1, 1), (2, 2)]
    await harness.assert_no_dead_letters()


async def test_g9_leaving_is_cut_off_at_the_deadline_and_loses_nothing(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Any] = []

    async def hanging() -> AsyncIterator[str]:
        yield "fine"
        events.append("leaving")
        await anyio.sleep_forever()

    async def failing() -> AsyncIterator[str]:
        yield "fine"
        raise OSError("the disk is full")

    agents = declared("hang", hanging, events, emits="out"), declared("fail", failing, events)
    with anyio.fail_after(60), caplog.at_level(logging.ERROR):
        async with harness.running(*agents, drain_seconds=0.1):
            await harness.send("hang.in", 1)
            await harness.send("fail.in", 2)
            await harness.drain()
    assert sorted(map(str, events)) == ["(1, 'fine')", "(2, 'fine')", "leaving"]
    assert "the lifespan of hang did not end in time and was cut off" in caplog.text
    assert "the lifespan of fail failed in the end" in caplog.text
    assert "the disk is full" in caplog.text


async def test_one_that_has_not_started_is_called_off_at_the_end(harness: Harness) -> None:
    starting, cleaned = anyio.Event(), []

    async def slow() -> AsyncIterator[None]:
        try:
            starting.set()
            await anyio.sleep_forever()
            yield
        finally:
            cleaned.append("up")

    with anyio.fail_after(60):
        async with harness.running(declared("shop", slow, [])):
            await starting.wait()
    assert cleaned == ["up"]


async def test_g1_k16_a_worker_that_slept_misses_nothing_for_an_agent_that_opens(harness: Harness) -> None:
    events: list[Any] = []
    opening = anyio.Event()

    async def late() -> AsyncIterator[str]:
        await opening.wait()
        yield "late"

    other = Agent("other")

    @other.on("other.in")
    async def ignore() -> None: ...

    async def until(holds: Callable[[], bool]) -> None:
        with anyio.fail_after(60):
            while not holds():
                await anyio.sleep(0.005)

    # No sweep and no poll finds what was not announced.
    async with harness.running(declared("shop", late, events), other, sweep_seconds=600) as worker:

        def is_asleep() -> bool:
            assert worker._parts is not None
            return worker._parts.dispatcher.plan.phase is Phase.ASLEEP

        await until(is_asleep)
        # Whoever writes before the opening is known announces to nobody, and commits when it was looked for.
        async with connected(harness._admin_url) as writer:
            writing = writer.transaction()
            await writing.start()
            await writer.execute("insert into consciousness_stream (key, value) values ('shop.in', '1')")
            exchanges = worker.counts["exchanges"]
            opening.set()
            await until(lambda: worker.counts["exchanges"] > exchanges)
            await anyio.sleep(0.1)
            await writing.commit()
        await until(lambda: bool(events))
    assert events == [(1, "late")]


async def test_a_drain_waits_for_it_to_start(harness: Harness) -> None:
    events: list[Any] = []

    async def slow() -> AsyncIterator[str]:
        await anyio.sleep(0.5)
        yield "slow"
        events.append("down")

    quick = Agent("quick")

    @quick.on("quick.in")
    async def ignore() -> None: ...

    agents = declared("shop", slow, events, start="earliest"), quick
    await harness.send("shop.in", 1)
    drained = await drain(agents, harness.settings, budget=20)
    assert (drained.handled, drained.left) == (1, 0)
    assert events == [(1, "slow"), "down"]


async def test_what_was_taken_for_an_agent_that_has_closed_is_given_back() -> None:
    agent, states, going_on = Agent("a"), {"a": "fine"}, anyio.Event()

    @agent.on("a.b")
    async def work(value: int, context: Context) -> None:
        await going_on.wait()

    async with Stage(agent, {"a.work": 1}, states=states).open() as it:
        it.give("work", 1, 2)
        await anyio.wait_all_tasks_blocked()
        del states["a"]
        it.runner.release("a")
        it.give("work", 3)
        given_back = [each.outcome for each in await it.reported(2)]
        going_on.set()
        assert [*given_back, None] == [each.outcome for each in await it.reported(3)]
    assert given_back == ["released", "released"]


async def coroutine() -> None: ...
def generator() -> Any:
    yield


async def with_arguments(settings: str) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("function", [coroutine, generator, with_arguments, 7])
def test_what_cannot_be_entered_is_refused_with_the_cure(function: Any) -> None:
    with pytest.raises(DeclarationError, match=r"async context manager|above a function"):
        Agent("a").lifespan(function)


def test_an_agent_has_one() -> None:
    agent = Agent("a")

    @agent.lifespan
    async def first() -> AsyncIterator[None]:
        yield

    with pytest.raises(DeclarationError, match="one lifespan"):
        agent.lifespan(first)
