"""Statuses of long deliveries: seen while they run and afterwards, stored seldom, and never a handler's trouble."""

from functools import partial
from typing import Any

import anyio
import pytest

from runtime import Agent, BatchContext, Context, Retry, connect
from runtime.cli.figures import table_of_statuses
from runtime.cli.output import out
from runtime.cli.trace import trees
from tests.integration.conftest import connected, running, settled, until
from tests.worker.test_steps import deliver, ended
from tests.worker.test_worker import admin, direct, query

pytestmark = pytest.mark.anyio


def printed(shown: Any) -> str:
    """What a command prints of it."""
    with out.capture() as capture:
        out.print(shown, soft_wrap=True)
    return capture.get()


async def test_a_status_is_seen_while_its_delivery_runs_and_stays_with_its_dead_letter(database: str) -> None:
    agent, seen = Agent("writer"), anyio.Event()

    @agent.on("task.input", retry=Retry(attempts=1))
    async def draft(value: int, context: Context) -> None:
        for chapter in range(1, 5_001):
            context.status(f"drafting {chapter} of 5000")
        await seen.wait()
        context.status(f"checking\0\ud800 {'x' * 500}")
        raise ValueError("no ending")

    async with (
        running([agent], direct(database, lease_seconds=600)),
        connect(direct(database)) as stream,
        connected(admin(database)) as connection,
    ):
        await connection.execute(
            "create table public.writes (n integer); "
            "create function public.count_write() returns trigger language plpgsql security definer as $$ begin "
            "insert into public.writes values (1); return null; end $$; "
            "create trigger counted after insert or update on runtime.statuses "
            "for each row execute function public.count_write()"
        )
        await until(lambda: settled(connection, "writer.draft"))
        number = (await stream.send("task.input", 1)).id

        async def told() -> str:
            statuses = (await stream.stats())["statuses"]
            return statuses[0]["text"] if statuses else ""

        async def is_told() -> bool:
            return await told() == "drafting 5000 of 5000"

        await until(is_told)
        # Once a second, not 5,000 times.
        assert await connection.fetchval("select count(*) from public.writes") < 100
        found = await stream.stats()
        assert f"#{number}" in printed(table_of_statuses(found["statuses"]))
        assert "drafting 5000 of 5000" in printed(table_of_statuses(found["statuses"]))
        seen.set()
        await until(partial(ended, connection))
        kept = partial(connection.fetchval, "select text from runtime.statuses")

        async def is_last() -> bool:
            return str(await kept()).startswith("checking")

        await until(is_last)
        assert (await stream.stats())["statuses"] == []
        [tree] = trees((await stream.views.trace(number))["messages"], number)
        assert "dead writer.draft" in printed(tree)
        assert "checking�? xxx" in printed(tree)
        assert len(await kept()) == 200


async def test_a_status_that_cannot_be_stored_is_no_trouble_of_the_handler(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent, logged = Agent("writer"), "the statuses of handlers cannot be stored"
    await query(database, "drop function public.stream_status")

    @agent.on("task.input", retry=Retry(attempts=1))
    async def draft(value: int, context: Context) -> None:
        context.status("drafting")
        await until(lambda: logged in caplog.text)

    await deliver(database, agent)


async def test_a_batch_tells_the_status_of_each_message_and_a_plain_handler_tells_one(database: str) -> None:
    agent = Agent("many")

    @agent.on("task.many", batch=2, within=60)
    async def many(values: list[int], context: BatchContext) -> None:
        context.status("together")

    @agent.on("task.plain")
    def plain(value: int, context: Context) -> None:
        context.status("alone")

    async with (
        running([agent], direct(database, lease_seconds=600)),
        connected(admin(database)) as connection,
    ):
        await until(lambda: settled(connection, "many.many", "many.plain"))
        async with connect(direct(database)) as stream:
            for key in ("task.many", "task.many", "task.plain"):
                await stream.send(key, 1)

        async def texts() -> bool:
            found = await connection.fetch("select text from runtime.statuses order by message_id")
            return [row["text"] for row in found] == ["together", "together", "alone"]

        await until(texts)
