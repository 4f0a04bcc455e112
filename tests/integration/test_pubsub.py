"""Does every live process get each message, at most once, with nothing kept? With real processes and sockets."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from runtime import Agent, Context, Message, connect
from tests.faulty_proxy import faulty_proxy
from tests.integration.conftest import connected, running, settings_of, until
from tests.integration.test_supervision import supervised

pytestmark = pytest.mark.anyio

SOURCE = """
import os
from runtime import Agent, Context, Message

ear = Agent("ear")

@ear.on("news.>", "news.flash", deliver="each")
async def hear(message: Message[object], context: Context) -> None:
    context.emit("heard", {"pid": os.getpid(), "id": message.id, "value": message.value})
"""


async def heard(connection: Any) -> Counter[tuple[int, str, str]]:
    """How often each process has told of each message, by its value and id, on the stream itself."""
    rows = await connection.fetch(
        "select (value ->> 'pid')::int as pid, value ->> 'value' as said, value ->> 'id' as id "
        "from consciousness_stream where key = 'heard'"
    )
    return Counter(tuple(row) for row in rows)


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_each_process_gets_each_message_once_and_a_killed_one_nothing_later(
    store: str, stack: Any, tmp_path: Path
) -> None:
    admin = stack.admin_url
    environment = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    url = stack.db_url if store == "direct" else ""
    async with connected(admin) as connection, connect(settings_of(stack)) as stream:
        async with supervised(url, tmp_path, "--processes", "2", source=SOURCE, **environment) as run:
            # Each says of itself that it hears.
            while len({pid for pid, _, _ in await heard(connection)}) < 2:
                await stream.send("news.begin", "begin")
                await anyio.sleep(0.1)
            for number in range(20):
                await stream.send("news.flash", f"a{number}")

            async def pids_of(value: str) -> set[int]:
                return {pid for pid, said, _ in await heard(connection) if said == value}

            async def has(value: str, count: int) -> bool:
                return len(await pids_of(value)) >= count

            await until(lambda: has("a19", 2))
            first = await pids_of("a19")
            killed = next(child for child in run.children if child.pid in first)
            killed.kill()
            await stream.send("news.flash", "between")
            await until(lambda: has("between", 1))

            async def is_replaced() -> bool:
                await stream.send("news.begin", "again")
                return len(await pids_of("again") - first) >= 1

            await until(is_replaced)
            await stream.send("news.flash", "last")
            await until(lambda: has("last", 2))
        counted = await heard(connection)
        assert set(counted.values()) == {1}, "at most once"
        assert {pid for pid, said, _ in counted if said == "a0"} == first
        assert killed.pid not in {pid for pid, said, _ in counted if said in ("between", "last")}
        assert await connection.fetchval("select count(*) from runtime.subscriptions") == 0
        assert await connection.fetchval("select count(*) from runtime.deliveries") == 0
        assert await connection.fetchval("select count(*) from runtime.runs") == 0


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_each_hears_everything_once_under_writers_that_commit_late(store: str, stack: Any) -> None:
    seen: list[int] = []
    ear = Agent("ear")

    @ear.on("news.*", "news.>", deliver="each")
    def hear(message: Message[int]) -> None:
        seen.append(message.value)

    settings = settings_of(stack, database_url=stack.db_url if store == "direct" else None)
    async with running([ear], settings) as worker:
        await until(lambda: worker.is_listening)

        async def write(first: int) -> None:
            async with connected(stack.db_url) as connection:
                for number in range(first, first + 50):
                    async with connection.transaction():
                        await connection.execute(
                            "insert into consciousness_stream (key, value) values ('news.a', to_jsonb($1::int))",
                            number,
                        )
                        await anyio.sleep(0.02 if number % 10 == 0 else 0)

        async with anyio.create_task_group() as tasks:
            for first in range(0, 400, 50):
                tasks.start_soon(write, first)
        await until(lambda: len(seen) >= 400)
    assert sorted(seen) == list(range(400))


async def test_a_dead_socket_costs_an_each_handler_no_message_and_doubles_none(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[int] = []
    ear = Agent("ear")

    @ear.on("news.a", deliver="each")
    async def hear(value: int) -> None:
        seen.append(value)

    async with faulty_proxy(urlsplit(stack.api_url).port) as proxy:
        settings = settings_of(stack, supabase_url=f"http://127.0.0.1:{proxy.port}", sweep_seconds=3600)
        async with running([ear], settings) as worker, connect(settings_of(stack)) as stream:
            await until(lambda: worker.is_listening)
            await until(lambda: "postgres_changes" in worker.live_paths)
            await stream.send("news.a", 0)
            await until(lambda: seen == [0])
            await proxy.cut()
            for number in range(1, 6):
                await stream.send("news.a", number)
            await until(lambda: len(seen) == 6)
            await until(lambda: "postgres_changes" in worker.live_paths)
            await stream.send("news.a", 6)
            await until(lambda: len(seen) >= 7)
    assert seen == list(range(7))


async def test_g6_a_slow_or_failing_each_handler_delays_no_other_and_drops_what_it_has_no_room_for(
    stack: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.worker.pubsub._WAITING", 10)
    monkeypatch.setattr("runtime.worker.pubsub._PATIENCE_SECONDS", 0.1)
    seen: dict[str, list[int]] = {"quick": [], "slow": [], "failing": []}
    ear = Agent("ear")
    open_again = anyio.Event()

    @ear.on("news.a", deliver="each")
    async def quick(value: int) -> None:
        seen["quick"].append(value)

    @ear.on("news.a", deliver="each", concurrency=1)
    async def slow(value: int) -> None:
        seen["slow"].append(value)
        await open_again.wait()

    @ear.on("news.a", deliver="each")
    async def failing(value: int, context: Context) -> None:
        seen["failing"].append(value)
        context.emit("never", value)
        raise RuntimeError("no good")

    settings = settings_of(stack, database_url=stack.db_url)
    async with running([ear], settings) as worker, connect(settings) as stream:
        await until(lambda: worker.is_listening)
        for number in range(50):
            await stream.send("news.a", number)
        await until(lambda: len(seen["quick"]) == 50 and len(seen["failing"]) == 50)
        await until(lambda: worker.counts.get("dropped", 0) >= 39)
        assert seen["slow"] == [0]
        open_again.set()
        await stream.send("news.a", 50)
        await until(lambda: seen["slow"][-1] == 50)
        assert worker.counts["dropped"] + len(seen["slow"]) == 51
        assert await stream.read("never") == []
    assert "ear.slow is too slow" in caplog.text
    assert "ear.failing failed on message" in caplog.text
    assert "nothing is kept of it" in caplog.text
    assert seen["failing"][:50] == list(range(50)), "each once, though it failed"


async def test_what_each_process_hears_it_does_not_answer(stack: Any) -> None:
    heard: list[int] = []
    desk = Agent("desk")

    @desk.on("price.asked", deliver="each")
    async def overhear(value: int) -> str:
        heard.append(value)
        return "not asked"

    @desk.on("price.asked")
    async def answer(value: int) -> str:
        await until(lambda: value in heard)
        # Whatever the other emits has had its time.
        await anyio.sleep(0.2)
        return "asked"

    settings = settings_of(stack, database_url=stack.db_url)
    async with running([desk], settings) as worker, connect(settings) as stream:
        await until(lambda: worker.is_listening)
        assert await stream.ask("price.asked", 1) == "asked"
        assert [each.value for each in await stream.ask_all("price.asked", 2)] == ["asked"]


async def test_g9_a_stopping_worker_lets_an_each_handler_end_and_sends_what_it_emitted(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    begun, may_end = anyio.Event(), anyio.Event()
    ear = Agent("ear")

    @ear.on("news.a", deliver="each", emits="news.done", concurrency=1)
    async def hear(value: int) -> int:
        begun.set()
        await may_end.wait()
        return value

    settings = settings_of(stack, database_url=stack.db_url)
    async with connect(settings) as stream:
        async with running([ear], settings) as worker:
            await until(lambda: worker.is_listening)
            await stream.send("news.a", 1)
            await begun.wait()
            await stream.send("news.a", 2)
            worker.stop()
            # There is no other work to wait for.
            await until(lambda: f"{worker.name} has stopped" in caplog.text)
            may_end.set()
        assert [message.value for message in await stream.read("news.done")] == [1]
