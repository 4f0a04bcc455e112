"""A proxy that delays, cuts, freezes and loses as a network does, and a server of canned answers."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream


@dataclass
class FaultyProxy:
    """Forwards to a port of 127.0.0.1, unless told otherwise.

    Attributes:
        lose_answers: so many times, when the server answers, the connection is cut instead.
        cut_requests: so many times, when the client sends, the connection is cut before the server sees it.
        frozen: nothing is forwarded to the client any more, and nothing is closed.
        delay: seconds each piece of an answer waits.
        refusing: new connections are closed at once.
        refuse_connections: so many new connections are closed at once.
        bytes_per_second: how fast answers come, each connection for itself; 0 is as fast as they can.
    """

    target: int
    port: int = 0
    lose_answers: int = 0
    cut_requests: int = 0
    frozen: bool = False
    delay: float = 0.0
    refusing: bool = False
    refuse_connections: int = 0
    bytes_per_second: float = 0.0
    connections: int = 0
    _open: set[SocketStream] = field(default_factory=set)
    _forgotten: set[SocketStream] = field(default_factory=set)

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        return len(self._open)

    async def cut(self) -> None:
        """End every connection, as a network does."""
        for client in list(self._open):
            await anyio.aclose_forcefully(client)

    async def cut_off(self) -> None:
        """End every connection and let no new one through, until `mend`."""
        self.refusing = True
        await self.cut()

    def mend(self) -> None:
        """Let connections through again."""
        self.refusing = False

    def forget(self) -> None:
        """Carry nothing more on the connections of this moment, and tell neither end, as a NAT does."""
        self._forgotten |= self._open

    async def serve(self, client: SocketStream) -> None:
        """Carry one connection."""
        if self.refusing or self.refuse_connections:
            self.refuse_connections = max(0, self.refuse_connections - 1)
            await anyio.aclose_forcefully(client)
            return
        self.connections += 1
        self._open.add(client)
        try:
            async with (
                await anyio.connect_tcp("127.0.0.1", self.target) as server,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._carry, client, server, True, tasks.cancel_scope)
                tasks.start_soon(self._carry, server, client, False, tasks.cancel_scope)
        except OSError:
            pass
        finally:
            self._open.discard(client)
            await anyio.aclose_forcefully(client)

    async def _carry(
        self, source: ByteStream, sink: ByteStream, is_request: bool, scope: anyio.CancelScope
    ) -> None:
        with contextlib.suppress(
            anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError
        ):
            while data := await source.receive():
                if source in self._forgotten or sink in self._forgotten:
                    continue
                if is_request and self.cut_requests:
                    self.cut_requests -= 1
                    break
                if not is_request:
                    if self.lose_answers:
                        self.lose_answers -= 1
                        break
                    await anyio.sleep(self.delay)
                    while self.frozen:
                        await anyio.sleep(0.02)
                await sink.send(data)
                if self.bytes_per_second and not is_request:
                    await anyio.sleep(len(data) / self.bytes_per_second)
        scope.cancel()


@asynccontextmanager
async def faulty_proxy(target: int) -> AsyncIterator[FaultyProxy]:
    """A proxy in front of a port, on a port of its own."""
    proxy = FaultyProxy(target)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        proxy.port = listener.extra(SocketAttribute.local_port)
        tasks.start_soon(listener.serve, proxy.serve)
        yield proxy
        tasks.cancel_scope.cancel()


@dataclass
class CannedServer:
    """An HTTP server that gives each request the next of its answers, and the last one for ever."""

    answers: list[bytes]
    port: int = 0
    requests: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, client: SocketStream) -> None:
        """Answer one request and close."""
        async with client:
            request = b""
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while b"\r\n\r\n" not in request:
                    request += await client.receive()
                head, _, body = request.partition(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                )
                while len(body) < length:
                    body += await client.receive()
                self.requests.append(head + b"\r\n\r\n" + body)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                await client.send(answer)


def http_answer(
    status: int,
    body: str = "",
    *,
    kind: str = "application/json",
    headers: str = "",
    reason: str = "Whatever",
) -> bytes:
    """An answer as it goes over the wire."""
    data = body.encode()
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        f"{headers}Connection: close\r\n\r\n"
    ).encode() + data


@asynccontextmanager
async def canned_server(*answers: bytes) -> AsyncIterator[CannedServer]:
    """A server of these answers."""
    server = CannedServer(list(answers))
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        server.port = listener.extra(SocketAttribute.local_port)
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()
