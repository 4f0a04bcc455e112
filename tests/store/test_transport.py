"""The short way of REST requests reads whatever a server may answer, and reuses only what is whole."""

import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute, SocketStream

from runtime.store.transport import QuickTransport

pytestmark = pytest.mark.anyio

Serve = Callable[[SocketStream], Awaitable[None]]


class Server:
    """Answers every request with the same bytes, in the pieces given, and counts connections."""

    def __init__(self, *pieces: bytes, hangs_up: bool = False) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._pieces = pieces
        self._hangs_up = hangs_up

    async def serve(self, stream: SocketStream) -> None:
        self.connections += 1
        async with stream:
            while True:
                try:
                    self.requests.append(await stream.receive())
                    for piece in self._pieces:
                        await stream.send(piece)
                        await anyio.lowlevel.checkpoint()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
                if self._hangs_up:
                    return

    @asynccontextmanager
    async def client(self, **limits: int) -> AsyncIterator[httpx.AsyncClient]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self.serve)
            transport = QuickTransport(connections=limits.get("connections", 2))
            async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}") as client:
                yield client
            tasks.cancel_scope.cancel()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n"
SQUEEZED = gzip.compress(b"[1,2]")
ANSWERS = {
    "with a length": [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[1,2]"],
    "in drops": [bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[1,2]"],
    "in chunks": [CHUNKED[:50], CHUNKED[50:]],
    "squeezed": [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(SQUEEZED) + SQUEEZED
    ],
    "after a word of patience": [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[1,2]",
    ],
}


@pytest.mark.parametrize("form", ANSWERS)
async def test_an_answer_is_read_in_every_form_and_its_connection_used_again(form: str) -> None:
    server = Server(*ANSWERS[form])
    async with server.client() as client:
        for _ in range(3):
            answer = await client.post("/rest/v1/rpc/x", content=b"{}")
            assert (answer.status_code, answer.json()) == (200, [1, 2])
    assert server.connections == 1


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"[1,2]", hangs_up=True)
    async with server.client() as client:
        for _ in range(2):
            assert (await client.post("/", content=b"{}")).json() == [1, 2]
    assert server.connections == 2


async def test_the_answer_to_a_head_has_no_body() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    async with server.client() as client:
        assert (await client.head("/")).headers["content-length"] == "5"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1,2]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,",
    ],
)
async def test_an_answer_that_breaks_off_is_none(said: bytes) -> None:
    async with Server(said, hangs_up=True).client() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/", content=b"{}")


async def test_what_is_no_http_is_no_answer() -> None:
    server = Server(b"SSH-2.0-OpenSSH_9.2\r\n")
    async with server.client() as client:
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/", content=b"{}")
    assert server.connections == 2


async def test_what_was_given_up_answers_to_nobody_else() -> None:
    server = Server()
    async with server.client(connections=1) as client:
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/", content=b"{}", timeout=0.05)
    assert server.connections == 2


async def test_no_more_connections_than_allowed() -> None:
    server = Server(*ANSWERS["with a length"])
    async with server.client(connections=2) as client, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(lambda: client.post("/", content=b"{}"))
    assert len(server.requests) == 10
    assert server.connections <= 2


async def test_a_header_smuggles_no_line() -> None:
    server = Server(*ANSWERS["with a length"])
    async with server.client() as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.post("/", content=b"{}", headers={"apikey": "a\r\nb: c"})
    assert server.requests == []
