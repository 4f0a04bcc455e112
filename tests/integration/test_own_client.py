"""A worker, a listener and an asker on the Realtime connection of a supabase client of the user's own."""

from collections import Counter
from typing import Any

import anyio
import pytest

import supabase
from runtime import Agent, Worker, connect
from runtime.local.faults import FaultyGateway
from tests.integration.conftest import connected, outcomes, settings_of, settled, until
from tests.wakeups.phoenix_server import IS_RECENT

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not IS_RECENT, reason="the realtime package is older than 2.34"),
]


async def test_g1_g3_the_client_s_silences_cost_time_and_no_message(stack: Any) -> None:
    seen: Counter[int] = Counter()
    heard: list[Any] = []
    agent = Agent("steady")

    @agent.on("steady.task", emits="steady.done")
    async def note(value: int) -> int:
        seen[value] += 1
        return value

    settings = settings_of(
        stack, nonce_seconds=1, nonce_deadline_seconds=1, sweep_seconds=2, poll_slow_seconds=0.2
    )
    async with FaultyGateway(stack.api_url) as faults:
        client = await supabase.create_async_client(faults.url, stack.service_role_key)
        own = client.channel("room")
        own.on_broadcast("hello", heard.append)
        await own.subscribe()
        worker = Worker([agent], settings, client=client)
        async with (
            anyio.create_task_group() as tasks,
            connect(settings, client=client) as stream,
            connected(stack.db_url) as connection,
        ):
            tasks.start_soon(worker.run)
            await until(lambda: worker.live_paths == {"broadcast", "postgres_changes"})
            await until(lambda: settled(connection, "steady.note"))
            assert {each.topic for each in client.get_channels()} == {
                "realtime:room", f"realtime:runtime:{worker.id}",
            }  # fmt: skip
            # The asker has a channel of its own; a join after the first fault would end that.
            assert await stream.ask("steady.task", 0, timeout=60) == 0
            await until(lambda: [each.is_joined for each in client.get_channels()] == [True] * 3)
            first = 1
            for fault in (
                lambda: faults.go_deaf("rows", "broadcasts"),
                lambda: faults.close(1012),
                lambda: faults.freeze("sockets"),
            ):
                struck: Any = fault()
                if struck is not None:
                    await struck
                if faults.struck["freeze"]:
                    # Until nonces stay away, and then until the thaw.
                    await until(lambda: worker.state == "polling")
                for number in range(first, first + 5):
                    assert await stream.ask("steady.task", number, timeout=60) == number
                first += 5
                faults.heal()
                await until(lambda: worker.state == "live")
            async for message in stream.listen("steady.done", since=0):
                assert message.value == 0
                break
            # The user's channel is on the same socket, and has outlived it too.
            while not heard:
                await connection.execute("select realtime.send('{}', 'hello', 'room', false)")
                await anyio.sleep(0.05)
            worker.stop()
        await client.realtime.close()
    assert seen == Counter(range(first))
    assert (await outcomes(stack.admin_url))["steady.note", "done"] == first
