"""Broadcasts reach those who listen, nobody else, and no table: over Realtime, and over NOTIFY."""

import json
import logging
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
import websockets

from runtime import Agent, Context, connect
from runtime.broadcast import Broadcast
from runtime.client.stream import Stream
from runtime.errors import InvalidValue, SettingsError
from runtime.message import Message
from runtime.settings import Settings
from tests.faulty_proxy import faulty_proxy
from tests.integration.conftest import connected, running, settings_of, settled, until
from tests.local.gateway.conftest import make_token

pytestmark = pytest.mark.anyio

WAYS = ["realtime", "notify"]


def settings_for(way: str, stack: Any, **changes: Any) -> Settings:
    """Settings with which this way carries broadcasts."""
    if way == "realtime":
        return settings_of(stack, **changes)
    return settings_of(stack, supabase_url=None, supabase_key=None, database_url=stack.db_url, **changes)


async def hear(stream: Stream, pattern: str, into: list[Message[Any] | Broadcast[Any]]) -> None:
    """Listen for ever."""
    async for heard in stream.listen(pattern, broadcasts=True):
        into.append(heard)


def values(heard: list[Message[Any] | Broadcast[Any]]) -> list[Any]:
    return [each.value for each in heard if isinstance(each, Broadcast)]


async def hears(caplog: pytest.LogCaptureFixture, times: int) -> None:
    """Return when so many listeners receive broadcasts."""
    await until(lambda: caplog.text.count("broadcasts are received at") >= times)


@pytest.mark.parametrize("way", WAYS)
async def test_a_handlers_broadcasts_arrive_in_order_and_are_stored_nowhere(
    way: str, stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    writer = Agent("writer")
    tokens = [f"token {number} " for number in range(200)]

    @writer.on("chat.asked", emits="chat.answered")
    async def answer(question: str, context: Context) -> str:
        for token in tokens:
            context.broadcast("chat.tokens", token)
            await anyio.sleep(0.001)
        return "".join(tokens)

    @writer.on("chat.asked")
    def think(question: str, context: Context) -> None:
        for step in range(20):
            context.broadcast("thought.step", {"step": step})

    everything: list[Message[Any] | Broadcast[Any]] = []
    exact: list[Message[Any] | Broadcast[Any]] = []
    other: list[Message[Any] | Broadcast[Any]] = []
    settings = settings_for(way, stack)
    async with (
        connect(settings) as stream,
        running([writer], settings, live=False),
        connected(stack.admin_url) as database,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(hear, stream, ">", everything)
        tasks.start_soon(hear, stream, "chat.tokens", exact)
        tasks.start_soon(hear, stream, "chat.other", other)
        await hears(caplog, 3)
        await until(lambda: settled(database, "writer.answer", "writer.think"))
        sent = await stream.send("chat.asked", "Why?")
        await until(lambda: len(values(everything)) >= 220 and len(values(exact)) >= 200)
        assert values(exact) == tokens
        assert [
            each.value for each in everything if isinstance(each, Broadcast) and each.key == "chat.tokens"
        ] == tokens
        steps = [each for each in everything if isinstance(each, Broadcast) and each.key == "thought.step"]
        assert [each.value["step"] for each in steps] == list(range(20))
        heard = [each for each in exact if isinstance(each, Broadcast)]
        assert [each.number for each in heard] == list(range(1, 201))
        assert {(each.agent, each.message_id, each.correlation_id) for each in heard} == {
            ("writer", sent.id, str(sent.id))
        }
        assert len({each.sender for each in heard}) == 1
        assert heard[0].sender != steps[0].sender
        await until(
            lambda: any(isinstance(each, Message) and each.key == "chat.answered" for each in everything)
        )
        assert other == []
        stored = await database.fetchval(
            "select count(*) from consciousness_stream where key in ('chat.tokens', 'thought.step')"
        )
        kept = await database.fetchval("select count(*) from realtime.messages where event = 'broadcasts'")
        assert (stored, kept) == (0, 0)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("way", WAYS)
async def test_a_script_broadcasts_and_its_last_broadcast_is_sent_before_it_ends(
    way: str, stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    heard: list[Message[Any] | Broadcast[Any]] = []
    settings = settings_for(way, stack)
    async with connect(settings) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(hear, stream, "news.*", heard)
        await hears(caplog, 1)
        async with connect(settings) as beside:
            for number in range(100):
                beside.broadcast("news.tick", number)
            with pytest.raises(InvalidValue, match="bytes as JSON"):
                beside.broadcast("news.tick", "x" * 65_000)
            beside.broadcast("news.last", {"over": True})
        await until(lambda: {"over": True} in values(heard))
        assert values(heard) == [*range(100), {"over": True}]
        tasks.cancel_scope.cancel()


async def test_a_frame_gathers_the_broadcasts_of_a_moment(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    heard: list[Message[Any] | Broadcast[Any]] = []
    settings = settings_of(stack, broadcast_gather_seconds=0.3)
    async with connect(settings) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(hear, stream, "news.*", heard)
        await hears(caplog, 1)
        for number in range(100):
            stream.broadcast("news.tick", number)
            await anyio.sleep(0.001)
        await until(lambda: len(values(heard)) == 100)
        assert stream._broadcaster is not None
        assert stream._broadcaster.counts["frames"] <= 3
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("way", WAYS)
async def test_broadcasts_while_a_listeners_connection_is_dead_are_missed_and_none_is_doubled(
    way: str, stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    heard: list[Message[Any] | Broadcast[Any]] = []
    target = urlsplit(stack.api_url if way == "realtime" else stack.db_url)
    async with (
        faulty_proxy(target.port) as proxy,
        connect(settings_for(way, stack)) as sender,
        anyio.create_task_group() as tasks,
    ):
        place = target._replace(netloc=target.netloc.replace(str(target.port), str(proxy.port))).geturl()
        far = (
            settings_of(stack, supabase_url=place)
            if way == "realtime"
            else settings_of(stack, supabase_url=None, supabase_key=None, database_url=place)
        )
        async with connect(far) as stream:
            tasks.start_soon(hear, stream, "news.*", heard)
            await hears(caplog, 1)
            sender.broadcast("news.tick", 1)
            await until(lambda: values(heard) == [1])
            await proxy.cut()
            sender.broadcast("news.tick", 2)
            await sender.flush_broadcasts()
            await hears(caplog, 2)
            sender.broadcast("news.tick", 3)
            await until(lambda: 3 in values(heard))
            # The second may have come just before the cut was done; what is missing shows in the numbers.
            assert values(heard) in ([1, 3], [1, 2, 3])
            numbers = [each.number for each in heard if isinstance(each, Broadcast)]
            assert numbers == values(heard)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("role", "topic"), [("anon", "runtime:broadcast"), ("authenticated", "runtime:broadcast:news.tick")]
)
async def test_others_neither_receive_broadcasts_nor_send_any(
    role: str, topic: str, stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    heard: list[Message[Any] | Broadcast[Any]] = []
    key = make_token(secret=stack.jwt_secret, role=role)
    url = stack.api_url.replace("http", "ws", 1)
    forged = {"broadcasts": [{"key": "news.tick", "number": 1, "value": "forged", "sender": "x"}]}
    message = {"topic": topic, "event": "broadcasts", "private": True, "payload": forged}
    async with connect(settings_of(stack)) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(hear, stream, ">" if topic == "runtime:broadcast" else "news.tick", heard)
        await hears(caplog, 1)
        async with httpx.AsyncClient(base_url=stack.api_url, headers={"apikey": key}) as http:
            answer = await http.post("/realtime/v1/api/broadcast", json={"messages": [message]})
            # Realtime drops it without a word.
            assert answer.status_code == 202
        async with websockets.connect(f"{url}/realtime/v1/websocket?apikey={key}&vsn=2.0.0") as socket:
            join = {"config": {"private": True}, "access_token": key}
            await socket.send(json.dumps(["1", "1", f"realtime:{topic}", "phx_join", join]))
            answer = json.loads(await socket.recv())
            assert answer[4]["status"] == "error"
            assert "permissions to read" in answer[4]["response"]["reason"]
        stream.broadcast("news.tick", "true")
        await until(lambda: values(heard) == ["true"])
        tasks.cancel_scope.cancel()


@pytest.mark.own_stack
async def test_a_policy_opens_the_broadcasts_under_one_key_and_nothing_else(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "listening.md").read_text()
    (policy,) = re.findall(r"```sql\n(.*?)```", page, re.S)
    user = "11111111-1111-1111-1111-111111111111"
    token = make_token(secret=stack.jwt_secret, role="authenticated", sub=user)
    url = stack.api_url.replace("http", "ws", 1)
    async with connected(stack.admin_url) as database:
        await database.execute(policy)
        await database.execute("grant select on realtime.messages to authenticated")
    async with (
        connect(settings_of(stack)) as stream,
        websockets.connect(f"{url}/realtime/v1/websocket?apikey={token}&vsn=2.0.0") as socket,
    ):
        join = {"config": {"private": True}, "access_token": token}
        await socket.send(json.dumps(["1", "1", f"realtime:runtime:broadcast:chat.{user}", "phx_join", join]))
        assert json.loads(await socket.recv())[4]["status"] == "ok"
        stream.broadcast("chat.another", "not for you")
        stream.broadcast(f"chat.{user}", "for you")
        payload = json.loads(await socket.recv())[4]["payload"]
        assert [each["value"] for each in payload["broadcasts"]] == ["for you"]
        await socket.send(json.dumps(["2", "2", "realtime:runtime:broadcast", "phx_join", join]))
        assert json.loads(await socket.recv())[4]["status"] == "error"


async def test_nothing_carries_it_where_realtime_and_notify_are_off(stack: Any) -> None:
    settings = settings_of(stack, broadcast=False)
    async with connect(settings) as stream:
        with pytest.raises(SettingsError, match="Nothing carries broadcasts"):
            stream.broadcast("news.tick", 1)
        with pytest.raises(SettingsError, match="Nothing carries broadcasts"):
            await anext(stream.listen("news.tick", broadcasts=True))
