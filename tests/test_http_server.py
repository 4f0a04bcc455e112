"""Serving HTTP: connections of which no request comes are dropped, and cost nobody an answer."""

from contextlib import AsyncExitStack, suppress

import anyio
import anyio.lowlevel
import httpx
import pytest
from anyio.abc import SocketStream
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from runtime import http_server as serving
from runtime.errors import SettingsError
from runtime.http_server import bound, is_loopback, served

pytestmark = pytest.mark.anyio


async def _hello(request: object) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def _slowly(request: object) -> StreamingResponse:
    async def parts() -> object:
        for number in range(4):
            await anyio.sleep(serving.HEAD_SECONDS)
            yield f"{number}"

    return StreamingResponse(parts())  # type: ignore[arg-type]


async def _ended(stream: SocketStream) -> None:
    """Return at the end of a connection, after whatever was answered."""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await stream.receive()


async def _answer(client: httpx.AsyncClient, url: str) -> str:
    """What is answered, tried again where the machine was too slow to send a whole head in time."""
    while True:
        try:
            async with client.stream("GET", url) as answer:
                # From here on nothing may cut the connection.
                try:
                    return (await answer.aread()).decode()
                except httpx.TransportError as error:
                    raise AssertionError("cut in the middle of the answer") from error
        except httpx.TransportError:
            await anyio.lowlevel.checkpoint()


APP = Starlette(routes=[Route("/", _hello), Route("/slowly", _slowly)])


@pytest.mark.parametrize(
    "beginning",
    [b"", b"G", b"POST /webhooks/shop HTTP/1.1\r\nhost: x\r\n", b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET"],
)
async def test_s7_half_open_connections_end_in_time(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.5)
    listening = bound("The test", "127.0.0.1", 0)
    port = listening.getsockname()[1]
    async with served(listening, APP), AsyncExitStack() as opened, httpx.AsyncClient() as client:
        streams = [
            await opened.enter_async_context(await anyio.connect_tcp("127.0.0.1", port)) for _ in range(200)
        ]
        with anyio.fail_after(60):
            for stream in streams:
                with suppress(anyio.BrokenResourceError):
                    await stream.send(beginning)
            assert await _answer(client, f"http://127.0.0.1:{port}/") == "hello"
            for stream in streams:
                await _ended(stream)
            assert await _answer(client, f"http://127.0.0.1:{port}/") == "hello"


async def test_s7_an_answer_that_takes_long_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.2)
    listening = bound("The test", "127.0.0.1", 0)
    async with served(listening, APP), httpx.AsyncClient(timeout=60) as client:
        assert await _answer(client, f"http://127.0.0.1:{listening.getsockname()[1]}/slowly") == "0123"


def test_a_port_that_another_program_takes_meanwhile_is_replaced_where_a_free_one_does_as_well() -> None:
    with bound("The test", "127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with bound("The test", "127.0.0.1", port, or_free=True) as other:
            assert other.getsockname()[1] not in (0, port)
        with pytest.raises(
            SettingsError, match=f"The test cannot listen at 127.0.0.1:{port}: Address already"
        ):
            bound("The test", "127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_s1_an_address_of_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "localhost.example", "127.0.0.1.example", "::2"]
)
def test_s1_an_address_that_others_can_reach(host: str) -> None:
    assert not is_loopback(host)
