"""Broadcasts that are gathered, refused, too many or too large, against a real HTTP server."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from runtime.agent.context import Context
from runtime.broadcast import Broadcast, BroadcastSequence, topic_of
from runtime.client.broadcaster import Broadcaster, RealtimeTransport
from runtime.errors import InvalidKey, InvalidValue
from runtime.message import Message
from tests.faulty_proxy import CannedServer, canned_server, http_answer

pytestmark = pytest.mark.anyio

TAKEN = http_answer(202)
TOO_MANY = http_answer(429, '{"error":"Too many requests"}')


def frames(server: CannedServer) -> list[list[dict[str, Any]]]:
    """What each request carried."""
    return [json.loads(request.partition(b"\r\n\r\n")[2])["messages"] for request in server.requests]


def sent(messages: list[dict[str, Any]], topic: str = "runtime:broadcast") -> list[Any]:
    """The values of one request to one topic."""
    return [
        each["value"]
        for message in messages
        if message["topic"] == topic
        for each in message["payload"]["broadcasts"]
    ]


@asynccontextmanager
async def broadcasting(url: str, gather_seconds: float = 0.05, **options: Any) -> AsyncIterator[Broadcaster]:
    """A broadcaster that runs."""
    broadcaster = Broadcaster(RealtimeTransport(url, "key", 5, **options), gather_seconds)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broadcaster.run)
        yield broadcaster
        tasks.cancel_scope.cancel()


async def test_everything_goes_to_the_common_topic_and_each_key_to_its_own() -> None:
    async with canned_server(TAKEN) as server, broadcasting(server.url) as broadcaster:
        sequence = BroadcastSequence(broadcaster.send)
        sequence.send("chat.a", 1)
        sequence.send("chat.b", {"two": 2})
        sequence.send("chat.a", 3)
        await broadcaster.flush()
    (messages,) = frames(server)
    assert sent(messages) == [1, {"two": 2}, 3]
    assert sent(messages, "runtime:broadcast:chat.a") == [1, 3]
    assert sent(messages, "runtime:broadcast:chat.b") == [{"two": 2}]
    assert all(message["private"] is True and message["event"] == "broadcasts" for message in messages)
    assert [each["number"] for each in messages[0]["payload"]["broadcasts"]] == [1, 1, 2]


async def test_what_realtime_takes_no_more_of_is_gathered_for_longer_and_sent_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with canned_server(TOO_MANY, TOO_MANY, TAKEN) as server, broadcasting(server.url) as broadcaster:
        sequence = BroadcastSequence(broadcaster.send)
        for number in range(3):
            sequence.send("chat.a", number)
        with anyio.fail_after(60):
            while not broadcaster.counts["frames"]:
                sequence.send("chat.a", "more")
                await anyio.sleep(0.05)
        await broadcaster.flush()
    taken = [value for messages in frames(server)[2:] for value in sent(messages)]
    assert taken[:3] == [0, 1, 2]
    assert len(taken) == broadcaster.counts["broadcasts"]
    assert "takes no more just now" in caplog.text


@pytest.mark.parametrize(
    ("answer", "why"),
    [(http_answer(500), "answered 500"), (http_answer(401), "refused the key")],
    ids=["500", "401"],
)
async def test_a_frame_of_which_nothing_is_known_is_not_sent_again(
    answer: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with canned_server(answer, TAKEN) as server, broadcasting(server.url) as broadcaster:
        sequence = BroadcastSequence(broadcaster.send)
        sequence.send("chat.a", 1)
        await broadcaster.flush()
        sequence.send("chat.a", 2)
        await broadcaster.flush()
    assert [sent(messages) for messages in frames(server)] == [[1], [2]]
    assert broadcaster.counts["dropped"] == 1
    assert why in caplog.text
    assert "key" not in [record.getMessage() for record in caplog.records]


async def test_memory_is_bounded_and_the_numbers_tell_what_was_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runtime.client.broadcaster._MAX_WAITING_BYTES", 1_000)
    caplog.set_level(logging.WARNING)
    async with canned_server(TAKEN) as server, broadcasting(server.url) as broadcaster:
        sequence = BroadcastSequence(broadcaster.send)
        for _ in range(100):
            sequence.send("chat.a", "x" * 50)
        await broadcaster.flush()
        sequence.send("chat.a", "after")
        await broadcaster.flush()
    first, last = frames(server)
    assert 0 < len(sent(first)) < 20
    assert len(sent(first)) + broadcaster.counts["dropped"] == 100
    assert last[0]["payload"]["broadcasts"][0]["number"] == 101
    assert "broadcasts were dropped" in caplog.text


async def test_a_frame_has_a_size_and_a_broadcast_has_one() -> None:
    async with (
        canned_server(TAKEN) as server,
        broadcasting(server.url, max_bytes=500, frame_bytes=1_000) as broadcaster,
    ):
        sequence = BroadcastSequence(broadcaster.send)
        for number in range(20):
            sequence.send("chat.a", f"{number}" * 50)
        with pytest.raises(InvalidValue, match="may have 500 bytes"):
            sequence.send("chat.a", "x" * 500)
        await broadcaster.flush(seconds=10)
    assert len(frames(server)) > 1
    assert [value for messages in frames(server) for value in sent(messages)] == [
        f"{number}" * 50 for number in range(20)
    ]
    assert all(len(json.dumps(messages[0]["payload"])) < 1_300 for messages in frames(server))


async def test_threads_broadcast_too_and_their_numbers_are_each_used_once() -> None:
    async with canned_server(TAKEN) as server, broadcasting(server.url) as broadcaster:
        sequence = BroadcastSequence(broadcaster.send)

        def send() -> None:
            for number in range(100):
                sequence.send("chat.a", number)

        async with anyio.create_task_group() as threads:
            for _ in range(4):
                threads.start_soon(anyio.to_thread.run_sync, send)
        await broadcaster.flush()
    numbers = [
        each["number"]
        for messages in frames(server)
        for message in messages
        if message["topic"] == "runtime:broadcast"
        for each in message["payload"]["broadcasts"]
    ]
    assert sorted(numbers) == list(range(1, 401))


def test_a_context_of_a_tests_own_reaches_nobody_and_refuses_what_cannot_be_sent() -> None:
    context = Context(Message(1, "chat.asked", None), "writer.answer")
    context.broadcast("chat.tokens", "word")
    with pytest.raises(InvalidKey):
        context.broadcast("chat.*", "word")
    with pytest.raises(InvalidValue):
        context.broadcast("chat.tokens", float("nan"))


def test_a_listener_to_one_key_joins_the_topic_of_that_key() -> None:
    assert topic_of("chat.a") == "runtime:broadcast:chat.a"
    assert topic_of("chat.*") == topic_of(">") == "runtime:broadcast"


@pytest.mark.parametrize(
    "payload",
    [
        None, [], {}, {"broadcasts": 1}, {"broadcasts": [None, 1, []]},
        {"broadcasts": [{"key": "a", "sender": "s", "number": 1}]},
        {"broadcasts": [{"key": "a.*", "sender": "s", "number": 1, "value": 1}]},
        {"broadcasts": [{"key": "a", "sender": 1, "number": 1, "value": 1}]},
    ],
)  # fmt: skip
def test_what_is_no_broadcast_is_left_out(payload: Any) -> None:
    assert Broadcast.all_from_wire(payload) == []
