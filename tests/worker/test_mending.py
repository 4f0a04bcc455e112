"""G12: what is kept of a handler is shared, forgotten and left to its version, as it was asked for."""

from functools import partial
from typing import Any

import pytest

from runtime import Agent, Context, Retry, Stream, connect
from runtime.client.dead_letters import DeadLetterFilter
from tests.integration.conftest import connected, running, settled, until
from tests.worker.test_steps import ended
from tests.worker.test_waits import is_suspended, served
from tests.worker.test_worker import admin, direct

pytestmark = pytest.mark.anyio


async def test_g12_a_redriven_letter_and_a_fork_go_on_from_a_step(database: str) -> None:
    agent, drafted, posted = Agent("press"), list[Any](), list[Any]()

    def draft(topic: str) -> str:
        drafted.append(topic)
        return f"on {topic}"

    @agent.on("topic.found", retry=Retry(attempts=1))
    async def write(topic: str, context: Context) -> None:
        text = await context.step("draft", draft, topic)
        text = await context.step("polish", str.upper, text)
        if not posted:
            posted.append("refused")
            raise ValueError("the press stands still")
        posted.append(text)

    async with served(database, agent) as (stream, connection):
        topic = await stream.send("topic.found", "tea")
        await until(partial(ended, connection))
        mended = stream.operations.redrive(
            DeadLetterFilter(), from_step="polish", edits={"draft": "about tea"}
        )
        assert [size async for size in mended] == [1]
        await until(partial(ended, connection))
        await stream.operations.fork(topic.id, edits={"polish": "tea and cake"})
        await until(partial(ended, connection))
    assert (drafted, posted) == (["tea"], ["refused", "ABOUT TEA", "tea and cake"])


async def test_g12_what_a_pinned_version_has_begun_waits_for_a_worker_of_it(database: str) -> None:
    goes_on = list[str]()

    def shop(version: str) -> Agent:
        agent = Agent("shop")

        @agent.on("order.placed", version=version, pin=True)
        async def sell(order: int, context: Context) -> None:
            await context.step("charge", abs, order)
            await context.wait_for("payment.settled", {"order": order})
            goes_on.append(f"{order} with {version}")

        return agent

    async def is_held_back(stream: Stream) -> bool:
        [subscription] = (await stream.stats())["subscriptions"]
        return bool(subscription["held_back"])

    async with connected(admin(database)) as connection, connect(direct(database)) as stream:
        async with running([shop("1")], direct(database)):
            await until(partial(settled, connection, "shop.sell"))
            await stream.send("order.placed", 7)
            await until(partial(is_suspended, connection), seconds=60)
        async with running([shop("2")], direct(database)):
            await stream.send("payment.settled", {"order": 7})
            await until(partial(is_held_back, stream), seconds=60)
            # The new version is at work, and leaves that alone.
            await stream.send("order.placed", 8)
            await stream.send("payment.settled", {"order": 8})
            await until(lambda: goes_on == ["8 with 2"], seconds=60)
            async with running([shop("1")], direct(database)):
                await until(partial(ended, connection), seconds=60)
    assert goes_on == ["8 with 2", "7 with 1"]
