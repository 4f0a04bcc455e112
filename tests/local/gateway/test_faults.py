"""Each fault that can be ordered strikes as it says, strikes nothing else, and ends when it should."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
import websockets

from runtime.local.faults import FaultyGateway

pytestmark = pytest.mark.anyio

ANY_ROW = {"event": "INSERT", "schema": "public", "table": "consciousness_stream", "select": ["key"]}


@pytest.fixture
async def faults(server: Any) -> AsyncIterator[FaultyGateway]:
    async with FaultyGateway(server.http_url) as proxy:
        yield proxy


@asynccontextmanager
async def joined(server: Any, by: Any) -> AsyncIterator[Any]:
    """A client that hears rows and broadcasts, behind the faults or at the server itself."""
    async with server.client(port=by.port) as client:
        client.join_ref = await client.join("realtime:x", ANY_ROW)
        yield client


async def write(server: Any, *keys: str) -> None:
    for key in keys:
        await server.sql(f"insert into public.consciousness_stream (key) values ('{key}')")


async def struck(faults: FaultyGateway, name: str, times: int) -> None:
    """Return when a fault has struck so often."""
    with anyio.fail_after(60):
        while faults.struck[name] < times:
            await anyio.sleep(0.01)


async def rows_until(client: Any, last: str) -> list[str]:
    """The keys of the rows that come, up to this one."""
    keys: list[str] = []
    while last not in keys:
        frame = await client.receive()
        keys.append(frame[4]["data"]["record"]["key"])
    return keys


async def heartbeat(client: Any) -> None:
    ref = await client.send("phoenix", "heartbeat")
    assert (await client.receive())[1:4] == [ref, "phoenix", "phx_reply"]


def post(server: Any, url: str, event: str) -> Awaitable[httpx.Response]:
    """A broadcast over HTTP: a request whose effect a listener sees."""

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(base_url=url) as http:
            return await http.post(
                "/realtime/v1/api/broadcast",
                json={"messages": [{"topic": "x", "event": event, "payload": {}}]},
                headers={"apikey": server.tokens(role="service_role")},
            )

    return send()


async def broadcasts_until(server: Any, client: Any, last: str) -> list[str]:
    """The events of the broadcasts that come, up to this one, which is sent past the faults."""
    assert (await post(server, server.http_url, last)).status_code == 202
    events: list[str] = []
    while last not in events:
        events.append((await client.receive())[4]["event"])
    return events


async def test_without_orders_nothing_is_changed(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        await heartbeat(client)
        await write(server, "a")
        assert await rows_until(client, "a") == ["a"]
        assert (await post(server, faults.url, "one")).status_code == 202
        assert await broadcasts_until(server, client, "two") == ["one", "two"]
        await server.sql("select realtime.send('{}', 'binary', 'x', false)")
        assert b"binary" in await client.receive()
        await client.send("realtime:x", "phx_leave", join_ref=client.join_ref)
        assert [(await client.receive())[3] for _ in range(2)] == ["phx_reply", "phx_close"]
        assert faults.sockets == 1
    assert not faults.struck


async def test_refusals_of_the_stack_pass_unchanged(server: Any, faults: FaultyGateway) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with server.client("abc", port=faults.port):
            pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body) == {"error": "The token provided is not a valid JWT"}


async def test_drop(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        faults.drop("rows", times=1, matching='"b"')
        await write(server, "a", "b", "b", "c")
        assert await rows_until(client, "c") == ["a", "b", "c"]
        faults.drop("rows")
        await write(server, "d")
        await struck(faults, "drop", 2)
        faults.heal()
        await write(server, "e")
        assert await rows_until(client, "e") == ["e"]


async def test_a_dropped_push_is_never_answered(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        faults.drop("pushes", times=1, matching="heartbeat")
        await client.send("phoenix", "heartbeat")
        await heartbeat(client)


async def test_double(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        faults.double("broadcasts", times=1)
        await post(server, faults.url, "one")
        assert await broadcasts_until(server, client, "two") == ["one", "one", "two"]
        faults.double("requests", times=1)
        assert (await post(server, faults.url, "three")).status_code == 202
        assert await broadcasts_until(server, client, "four") == ["three", "three", "four"]


async def test_what_is_delayed_is_overtaken(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        faults.delay("rows", 1, times=1)
        await write(server, "a", "b")
        assert await rows_until(client, "a") == ["b", "a"]


async def test_truncate(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        faults.truncate("rows", times=1)
        await write(server, "a")
        with pytest.raises(json.JSONDecodeError):
            await client.receive()
        await heartbeat(client)
    faults.truncate("requests", times=1)
    async with httpx.AsyncClient(base_url=faults.url) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post("/realtime/v1/api/broadcast", json={})
        assert (await http.post("/realtime/v1/api/broadcast", json={})).status_code == 401


async def test_frozen_sockets_are_silent_and_stay_open(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        faults.freeze("sockets")
        await client.send("phoenix", "heartbeat")
        with pytest.raises(TimeoutError):
            await client.receive(0.3)
        assert (await post(server, faults.url, "requests pass")).status_code == 202
        with pytest.raises(TimeoutError), anyio.fail_after(0.3):
            async with server.client(port=faults.port):
                pytest.fail("a new one got an answer to its upgrade")
        faults.heal()
        assert {(await client.receive())[3] for _ in range(2)} == {"phx_reply", "broadcast"}


async def test_frozen_requests_wait(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client, anyio.create_task_group() as tasks:
        faults.freeze("requests")
        tasks.start_soon(post, server, faults.url, "late")
        assert await broadcasts_until(server, client, "soon") == ["soon"]
        faults.heal()
        assert (await client.receive())[4]["event"] == "late"


async def test_refuse(server: Any, faults: FaultyGateway) -> None:
    faults.refuse("sockets", 429, times=1)
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with server.client(port=faults.port):
            pass
    assert refused.value.response.status_code == 429
    async with joined(server, faults) as client:
        faults.refuse("requests", 503, times=1, matching="POST /realtime")
        assert (await post(server, faults.url, "one")).status_code == 503
        assert (await post(server, faults.url, "two")).status_code == 202
        assert await broadcasts_until(server, client, "three") == ["two", "three"]


async def test_hang_up(server: Any, faults: FaultyGateway) -> None:
    faults.hang_up(1011, times=1)
    async with server.client(port=faults.port) as client:
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await client.receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    async with joined(server, faults):
        pass


async def test_the_deaf_hear_heartbeats_and_no_rows_until_they_join_again(
    server: Any, faults: FaultyGateway
) -> None:
    async with (
        joined(server, faults) as client,
        joined(server, faults) as late,
        joined(server, server) as witness,
    ):
        faults.go_deaf()
        await write(server, "a")
        # Sent to whoever heard it: who joins from now on hears nothing of it.
        assert await rows_until(witness, "a") == ["a"]
        await heartbeat(client)
        await heartbeat(late)
        assert await broadcasts_until(server, client, "broadcasts pass") == ["broadcasts pass"]
        async with joined(server, faults) as new:
            await write(server, "b")
            assert await rows_until(new, "b") == ["b"]
        token = server.tokens(role="service_role", seconds=7200)
        await client.send("realtime:x", "access_token", {"access_token": token}, client.join_ref)
        assert (await client.receive())[3] == "system"
        await write(server, "c")
        assert await rows_until(client, "c") == ["c"]
        assert (await late.receive())[4]["event"] == "broadcasts pass"
        with pytest.raises(TimeoutError):
            await late.receive(0.3)


async def test_above_the_rate_rows_vanish_without_a_word(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        faults.limit_rate(1, window_seconds=3)
        await write(server, "a", "b", "c", "d", "e")
        assert await rows_until(client, "c") == ["a", "b", "c"]
        await struck(faults, "limit the rate", 2)
        await heartbeat(client)
        faults.heal()
        await write(server, "f")
        assert await rows_until(client, "f") == ["f"]


async def test_a_lost_answer_comes_after_the_effect(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        faults.lose_answer(times=1)
        with pytest.raises(httpx.RemoteProtocolError):
            await post(server, faults.url, "one")
        faults.drop("requests", times=1)
        with pytest.raises(httpx.RemoteProtocolError):
            await post(server, faults.url, "without effect")
        assert await broadcasts_until(server, client, "two") == ["one", "two"]


@pytest.mark.parametrize("code", [1000, 1006, 1011, 1012])
async def test_close(server: Any, faults: FaultyGateway, code: int) -> None:
    async with joined(server, faults) as client:
        await faults.close(code)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.receive()
        assert (closed.value.rcvd.code if closed.value.rcvd else 1006) == code


async def test_reset(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        faults.reset()
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await client.receive()
        assert isinstance(closed.value.__cause__, ConnectionResetError)


async def test_forged_frames_reach_the_client(server: Any, faults: FaultyGateway) -> None:
    async with joined(server, faults) as client:
        await faults.inject('[null,null,"realtime:x","broadcast",{"event":"forged"}]')
        assert (await client.receive())[4] == {"event": "forged"}


@pytest.mark.parametrize(
    "order",
    [
        lambda faults: faults.refuse("rows"),
        lambda faults: faults.truncate("sockets"),
        lambda faults: faults.freeze("rows"),
    ],
)
async def test_what_makes_no_sense_is_refused(order: Callable[[FaultyGateway], None]) -> None:
    with pytest.raises(ValueError, match=r"no way to|Only sockets or requests"):
        order(FaultyGateway("http://127.0.0.1:1"))


async def test_a_stack_that_goes_away_takes_only_its_sockets_along(stack: Any) -> None:
    async with FaultyGateway(stack.api_url) as faults:
        url = f"{faults.url.replace('http', 'ws')}/realtime/v1/websocket?apikey={stack.service_role_key}&vsn=2.0.0"
        async with websockets.connect(url) as socket, httpx.AsyncClient(base_url=faults.url) as http:
            await anyio.to_thread.run_sync(stack.kill_gateway)
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                await socket.recv()
            assert closed.value.rcvd is None
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get("/health")
            await anyio.to_thread.run_sync(stack.start_gateway)
            assert (await http.get("/health")).status_code == 200
        async with websockets.connect(url) as socket:
            await socket.send('[null,"1","phoenix","heartbeat",{}]')
            assert "phx_reply" in str(await socket.recv())
