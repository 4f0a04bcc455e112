"""Does a script hear what is written, over REST and Realtime, whatever becomes of the gateway?"""

import logging
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from runtime import connect
from runtime.client.stream import Stream
from runtime.message import Message
from supabase import create_async_client
from tests.faulty_proxy import faulty_proxy
from tests.integration.conftest import settings_of, until

pytestmark = pytest.mark.anyio


async def collect(stream: Stream, pattern: str, into: list[Message[Any]]) -> None:
    """Listen for ever."""
    async for message in stream.listen(pattern):
        into.append(message)


async def begun(stream: Stream, heard: list[Message[Any]]) -> None:
    """Return when the listener has heard a message."""
    with anyio.fail_after(60):
        while not heard:
            await stream.send("site.begin", None)
            await anyio.sleep(0.05)


def is_live(caplog: pytest.LogCaptureFixture) -> int:
    """How often postgres_changes has become live."""
    return sum("live" in record.getMessage() and record.levelno == logging.INFO for record in caplog.records)


async def test_listen_is_woken_by_realtime_and_not_by_a_timer(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.wakeups")
    # Once live nothing looks by itself for an hour: what is heard was pushed.
    settings = settings_of(stack, sweep_seconds=3600)
    heard: list[Message[Any]] = []
    async with connect(settings) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(collect, stream, "site.>", heard)
        await begun(stream, heard)
        await until(lambda: is_live(caplog) > 0)
        for number in range(5):
            await stream.send("site.a", number)
            await until(lambda number=number: heard[-1].value == number)
        assert [message.value for message in heard if message.key == "site.a"] == list(range(5))
        tasks.cancel_scope.cancel()


@pytest.mark.own_stack
async def test_listen_goes_on_after_the_gateway_was_killed_and_started_again(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    heard: list[Message[Any]] = []
    settings = settings_of(stack)
    direct = settings_of(stack, database_url=stack.db_url)
    async with connect(settings) as stream, connect(direct) as beside, anyio.create_task_group() as tasks:
        tasks.start_soon(collect, stream, "site.>", heard)
        await begun(beside, heard)
        await until(lambda: is_live(caplog) > 0)
        stack.kill_gateway()
        for number in range(20):
            await beside.send("site.a", number)
        # Longer than one request is tried again.
        await until(lambda: "the store is away" in caplog.text)
        await anyio.to_thread.run_sync(stack.start_gateway)
        for number in range(20, 30):
            await beside.send("site.a", number)
        await until(lambda: [m.value for m in heard if m.key == "site.a"] == list(range(30)))
        tasks.cancel_scope.cancel()
    assert caplog.text.count("the store is away") == 1
    assert caplog.text.count("the store answers again") == 1


async def test_a_listeners_socket_is_closed_with_the_listener(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.wakeups")
    async with faulty_proxy(urlsplit(stack.api_url).port) as proxy:
        settings = settings_of(stack, supabase_url=f"http://127.0.0.1:{proxy.port}")
        async with connect(settings) as stream:
            sent = await stream.send("site.a", 1)
            listener = stream.listen("site.a", since=sent.id - 1)
            assert (await anext(listener)).value == 1
            await until(lambda: is_live(caplog) > 0)
            # The connections of the requests stay.
            with_socket = proxy.open_connections
            await listener.aclose()
            # Long before the socket could be given up for any other reason.
            await until(lambda: proxy.open_connections < with_socket, seconds=15)
            idle = proxy.open_connections
            left = stream.listen("site.a", since=sent.id - 1)
            assert (await anext(left)).value == 1
            await until(lambda: proxy.open_connections > idle)
        await until(lambda: proxy.open_connections == 0)


async def test_the_users_own_client_sends_reads_and_listens(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.wakeups")
    client = await create_async_client(stack.api_url, stack.secret_key)
    heard: list[Message[Any]] = []
    # The settings name another project, which is not there: the client says where the stream is.
    settings = settings_of(stack, supabase_url="http://127.0.0.1:9", sweep_seconds=3600)
    async with connect(settings, client=client) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(collect, stream, "site.>", heard)
        await begun(stream, heard)
        await until(lambda: is_live(caplog) > 0)
        await stream.send("site.a", {"from": "a client"})
        await until(lambda: heard[-1].value == {"from": "a client"})
        latest = await stream.latest("site.a")
        assert latest is not None
        tasks.cancel_scope.cancel()
    rows = await client.table("consciousness_stream").select("id").eq("key", "site.a").execute()
    assert [row["id"] for row in rows.data] == [latest.id]
