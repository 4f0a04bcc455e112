"""G13: a handler whose request is not answered in a moment is suspended, and goes on with the answer."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from runtime import Agent, Context
from runtime.errors import AskTimeout
from runtime.testing import Harness
from tests.integration.conftest import connected, until

pytestmark = pytest.mark.anyio


def pricing() -> Agent:
    """An agent with two handlers that answer under one key."""
    agent = Agent("pricing")

    @agent.on("price.wanted")
    async def price(item: str) -> int:
        return len(item)

    @agent.on("price.wanted")
    async def guess(item: str) -> int:
        return 0

    return agent


@asynccontextmanager
async def asking(harness: Harness, agent: Agent) -> AsyncIterator[Any]:
    """A worker of the agent alone, after one of those that answer has been there; a connection to look."""
    async with harness.running(pricing()):
        pass
    async with harness.running(agent), connected(harness._admin_url) as connection:
        yield connection


async def is_suspended(connection: Any) -> bool:
    """Whether a delivery waits for an answer without a lease, and no writer can have missed it."""
    return bool(
        await connection.fetchval(
            "select exists (select from runtime.waits join runtime.deliveries d using (message_id, subscription) "
            "where d.lease is null and d.visible_at > now()) "
            "and not exists (select from runtime.unsettled_waits)"
        )
    )


async def answered(connection: Any, value: int) -> int:
    """Write an answer to the one request, as any program may; returns how many waits there were for it."""
    waits: int = await connection.fetchval("select count(*) from runtime.waits")
    await connection.execute(
        "insert into consciousness_stream (key, value, parent_id) "
        "select headers ->> 'reply_to', to_jsonb($1::integer), id from consciousness_stream "
        "where key = 'price.wanted'", value,
    )  # fmt: skip
    return waits


async def test_g13_a_handler_that_asks_for_long_holds_nothing_and_goes_on_with_the_answer(
    harness: Harness,
) -> None:
    agent, begun, got = Agent("shop"), list[str](), list[tuple[str, int]]()

    @agent.on("order.placed", concurrency=1, timeout=60)
    async def sell(item: str, context: Context) -> None:
        begun.append(item)
        if item != "free":
            got.append((item, await context.ask("price.wanted", item, timeout=3600)))

    async with asking(harness, agent) as connection:
        await harness.send("order.placed", "pen")
        await until(partial(is_suspended, connection), seconds=60)
        await harness.send("order.placed", "free")
        await until(lambda: "free" in begun, seconds=60)
        [wait] = json.loads(await connection.fetchval("select stream_waits()"))
        request = await connection.fetchval("select id from consciousness_stream where key = 'price.wanted'")
        assert (wait["parent"], wait["suspended"]) == (request, True)
        async with harness.running(pricing()):
            await until(lambda: got == [("pen", 3)] or got == [("pen", 0)], seconds=60)
        await harness.drain(seconds=60)
        assert await connection.fetchval("select count(*) from runtime.waits") == 0
        assert await connection.fetchval("select max(attempt) from runtime.runs") == 1
    # A busy machine may have it look once more in between.
    assert (begun[0], begun.count("free"), begun.count("pen") > 1, len(got)) == ("pen", 1, True, 1)
    await harness.assert_emitted("price.wanted", times=1)


async def test_g13_the_time_for_an_answer_runs_over_all_attempts(harness: Harness) -> None:
    agent, begun, got = Agent("shop"), list[str](), list[str]()

    @agent.on("order.placed")
    async def sell(item: str, context: Context) -> None:
        begun.append(item)
        with pytest.raises(AskTimeout, match="within 3600 s"):
            await context.ask("price.wanted", item, timeout=3600)
        got.append("timeout")

    async with asking(harness, agent) as connection:
        await harness.send("order.placed", "pen")
        await until(partial(is_suspended, connection), seconds=60)
        # No message tells that nobody will answer, so it looks again after some minutes.
        before = len(begun)
        await harness.advance(900)
        await until(lambda: len(begun) > before, seconds=60)
        await until(partial(is_suspended, connection), seconds=60)
        assert got == []
        left = "select until < now() + interval '46 minutes' from runtime.waits"
        assert await connection.fetchval(left)
        await harness.advance(2700)
        await until(lambda: got == ["timeout"], seconds=60)
    await harness.assert_no_dead_letters()


async def test_g13_each_answer_lets_who_wants_several_look_and_a_plain_handler_asks_as_well(
    harness: Harness,
) -> None:
    agent, begun, got = Agent("shop"), list[str](), list[Any]()

    @agent.on("order.placed")
    async def sell(item: str, context: Context) -> None:
        begun.append(item)
        got.append(
            [each.value for each in await context.ask_all("price.wanted", item, first=2, timeout=3600)]
        )

    @agent.on("order.changed")
    def change(item: str, context: Context) -> None:
        begun.append(item)
        got.append(context.ask_blocking("price.wanted", item, timeout=None))

    async with asking(harness, agent) as connection:
        await harness.send("order.placed", "pen")
        await until(partial(is_suspended, connection), seconds=60)
        before = len(begun)
        assert await answered(connection, 1) == 1
        await until(lambda: len(begun) > before, seconds=60)
        await until(partial(is_suspended, connection), seconds=60)
        assert await answered(connection, 2) == 1
        await until(lambda: len(got) == 1, seconds=60)
        assert got == [[1, 2]]
        # The first request is none of the second handler's.
        await connection.execute("delete from consciousness_stream where key = 'price.wanted'")
        await harness.send("order.changed", "ink")
        await until(partial(is_suspended, connection), seconds=60)
        await answered(connection, 3)
        await until(lambda: len(got) == 2, seconds=60)
    assert (begun.count("ink") > 1, got[1:]) == (True, [3])
