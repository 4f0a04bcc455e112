"""A message that goes to nobody is told: where it is sent, where it is emitted, where a handler comes too late."""

import logging
from typing import Any

import pytest

from runtime import Agent, Context, connect
from runtime.errors import NobodyListens
from tests.integration.conftest import connected, running, settings_of, until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_a_message_that_goes_to_nobody_is_told_by_who_sends_and_by_who_comes_too_late(
    store: str, stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime")
    settings = settings_of(stack, database_url=stack.db_url if store == "direct" else None)
    late, ear = Agent("late"), Agent("ear")
    seen: list[int] = []

    @late.on("task.new")
    async def work(value: int, context: Context) -> None:
        seen.append(value)
        context.emit("task.done", value)

    @ear.on("news.*", deliver="each")
    async def hear(value: int) -> None: ...

    def told(text: str) -> list[str]:
        return [message for message in caplog.messages if text in message]

    async with connect(settings) as stream:
        assert (await stream.send("task.new", 1)).unheard
        assert (await stream.send("task.new", 2)).unheard
        assert len(told("no handler listens to task.new: message 1 is stored")) == 1
        with pytest.raises(NobodyListens, match=r"no handler listens to task\.new"):
            await stream.send("task.new", 3, require_listener=True)
        assert [message.value for message in await stream.read(">")] == [1, 2]
        async with running([late, ear], settings), connected(stack.admin_url) as connection:
            (said,) = told("begins now")
            assert said.startswith(
                "late.work begins now: 2 of the last messages in the stream match and are not"
            )
            assert "runtime replay late.work --key '>'" in said
            sent = await stream.send("task.new", 4, require_listener=True)
            assert not sent.unheard
            assert not (await stream.send("news.flash", 5)).unheard
            assert [each.unheard for each in await stream.send_all([])] == []
            await until(lambda: seen == [4])
            await stream.operations.replay("late.work", pattern=">")
            await until(lambda: set(seen) == {1, 2, 4})
            await until(lambda: bool(told("listens to task.done, which late.work emits")))

            async def is_over() -> bool:
                return await connection.fetchval("select count(*) from runtime.deliveries") == 0

            await until(is_over)
        assert len(told("task.done")) == 1
        # The agent is known now: what is sent while it is away waits for it.
        assert not (await stream.send("task.new", 6)).unheard
        assert len(told("task.new")) == 1
