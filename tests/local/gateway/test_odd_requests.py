"""Odd requests end with an answer of their own: nobody else's socket ends, and nothing is a fault of the server."""

import socket
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from runtime.local.gateway.request_timeouts import RequestTimeoutProtocol

pytestmark = pytest.mark.anyio

SURROGATE = '"\\ud800"'
DEEP = '{"a":' * 5_000 + "1" + "}" * 5_000
BAD_JSON = {"half a character": SURROGATE, "deep": DEEP, "no number": "NaN", "much deeper": "[" * 200_000}


@pytest.mark.parametrize("bad", BAD_JSON)
async def test_s7_what_cannot_be_written_for_others_ends_nobody_s_socket(server: Any, bad: str) -> None:
    value = BAD_JSON[bad]
    headers = {"apikey": server.tokens(role="service_role"), "content-type": "application/json"}
    async with server.client() as listener, server.client() as sender:
        await listener.join("realtime:h")
        ref = await sender.join("realtime:h")
        async with httpx.AsyncClient(base_url=server.http_url, headers=headers) as http:
            for path, body in {
                "/realtime/v1/api/broadcast": f'{{"messages":[{{"topic":"h","event":"e","payload":{{"v":{value}}}}}]}}',
                "/realtime/v1/api/broadcast/h/events/e": f'{{"v":{value}}}',
            }.items():
                assert (await http.post(path, content=body)).status_code == 422
        await sender.socket.send(f'["{ref}","9","realtime:h","broadcast",{{"event":"e","payload":{value}}}]')
        binary = bytes([3, 1, 1, 10, 1, 0, 1]) + ref.encode() + b"8" + b"realtime:h" + b"e" + value.encode()
        await sender.socket.send(binary)
        # Both are still there: what is sent next arrives.
        await sender.send("realtime:h", "broadcast", {"event": "e", "payload": {"v": "well"}}, ref)
        heard = await listener.receive(30)
        assert heard[4]["payload"] == {"v": "well"}


ODD_PATHS = [
    "?id=eq.99999999999999999999", "?id=eq.-99999999999999999999999", "?id=eq.%00", "?id=eq.1%00", "?id=in.(1,%00)",
    "?id=eq.1e999999", "?id=eq.NaN", "?limit=99999999999999999999", "?limit=%C2%B2", "?limit=" + "9" * 5_000,
    "?offset=99999999999999999999", "?offset=%D9%A1", "?id=eq.%ED%A0%80", "?%00=eq.1", "?select=%00", "?order=%00",
    "?id=gt.", "?id=", "?id=is.x", "?id=in.(", "?id=not.", "?=eq.1", "?id=eq." + "9" * 20_000,
]  # fmt: skip
ODD_HEADERS = [
    {"apikey": b"\xff\xfe"}, {"authorization": b"Bearer \xff"}, {"authorization": b"Bearer a.b.c"},
    {"authorization": b"Bearer " + b"x" * 5_000}, {"accept-profile": b"\xff"}, {"accept-profile": b"a,b"},
]  # fmt: skip


async def test_s7_odd_ids_and_headers_are_faults_of_the_request(server: Any) -> None:
    key = server.tokens(role="service_role")
    await server.sql("grant all on public.consciousness_stream to service_role")
    async with httpx.AsyncClient(base_url=server.http_url, headers={"apikey": key}) as http:
        url = "/rest/v1/consciousness_stream"
        for query in ODD_PATHS:
            answer = await http.get(url + query)
            assert 400 <= answer.status_code < 500 or answer.json() == [], (query[:60], answer.status_code)
        for headers in ODD_HEADERS:
            answer = await http.get(url, headers=headers)
            assert 400 <= answer.status_code < 500, (headers, answer.status_code)
        for path in (url, "/rest/v1/rpc/nothing"):
            for body in (
                b"\xff",
                b'{"key": "\\u0000"}',
                b'{"key": "\\ud800"}',
                b"[" * 100_000,
                b'{"id": 1e999}',
                b"1",
                b'"x"',
            ):
                answer = await http.post(path, content=body)
                assert 400 <= answer.status_code < 500, (path, body[:20], answer.status_code)
        assert (await http.get(url)).status_code == 200


class Hasty(RequestTimeoutProtocol):
    """The same, without making a test wait for it."""

    request_seconds = 0.2


HALF = {
    "nothing": b"", "half a head": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
    "a second half": b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT",
}  # fmt: skip


@pytest.mark.parametrize("sent", HALF)
async def test_s7_connections_that_send_half_a_request_are_given_up(sent: str) -> None:
    async def answer(request: Any) -> PlainTextResponse:
        return PlainTextResponse((await request.body()).decode() or "well")

    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(app, http=Hasty, log_config=None, lifespan="off", timeout_keep_alive=1)
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            with anyio.fail_after(60):
                for _ in range(5):
                    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                        if HALF[sent]:
                            await stream.send(HALF[sent])
                        # Until the server's end of it is closed.
                        while True:
                            try:
                                await stream.receive()
                            except (anyio.EndOfStream, anyio.BrokenResourceError):
                                break
                async with httpx.AsyncClient() as http:
                    assert (await http.get(f"http://127.0.0.1:{port}/")).text == "well"
            server.should_exit = True
