"""One WebSocket that is carried through the faults frame by frame, both ways."""

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final, TypeAlias

import anyio
import websockets
from anyio.abc import SocketStream, TaskGroup
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from runtime.local.faults.orders import Kind, Orders, event_of, kind_of, text_of

_Frame: TypeAlias = str | bytes

_LINGER_NOT: Final = struct.pack("ii", 1, 0)
_REVIVING: Final = frozenset({"phx_join", "access_token"})


class WebSocketSide:
    """The client's side; `run` serves it until either side ends."""

    def __init__(self, orders: Orders, stream: SocketStream, upstream_url: str) -> None:
        self._orders = orders
        self._stream = stream
        self._upstream_url = upstream_url
        self._protocol = ServerProtocol(max_size=None)
        self._deaf: frozenset[Kind] = frozenset()
        self._turn = anyio.Lock()
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope()

    async def run(self, head: bytes, running: "set[WebSocketSide]") -> None:
        """Open a socket to the stack and carry frames; the socket is in `running` from the upgrade on."""
        self._protocol.receive_data(head)
        (request,) = self._protocol.events_received()
        assert isinstance(request, Request)
        await self._orders.wait_while_frozen("sockets")
        order = self._orders.strike("sockets", request.path)
        action = order.action if order else None
        if action == "drop":
            return
        if order is not None and action == "delay":
            await anyio.sleep(order.number)
        if order is not None and action == "refuse":
            await self._refuse(int(order.number), "")
            return
        try:
            key = request.headers.get("x-api-key")
            upstream = await websockets.connect(
                self._upstream_url + request.path, max_size=None, compression=None,
                additional_headers={"x-api-key": key} if key else {},
            )  # fmt: skip
        except websockets.InvalidStatus as error:
            await self._refuse(error.response.status_code, error.response.body.decode())
            return
        except (OSError, websockets.InvalidHandshake):
            return
        try:
            self._protocol.send_response(self._protocol.accept(request))
            await self._flush()
            if order is not None and action == "hang up":
                self._protocol.send_close(int(order.number))
                await self._flush()
                return
            running.add(self)
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._from_client, upstream)
                    tasks.start_soon(self._to_client, upstream)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                await upstream.close()

    def go_deaf(self, kinds: frozenset[Kind]) -> None:
        """Drop these kinds from now on, until the client joins anew or sends another token."""
        self._deaf |= kinds

    async def send(self, frame: _Frame) -> None:
        """Send the client a frame, unless the socket is closing already."""
        if self._protocol.state is not OPEN:
            return
        if isinstance(frame, str):
            self._protocol.send_text(frame.encode())
        else:
            self._protocol.send_binary(frame)
        await self._flush()

    async def close(self, code: int) -> None:
        """End the socket with this close code, or without one for 1006."""
        if code != 1006 and self._protocol.state is OPEN:
            self._protocol.send_close(code)
            await self._flush()
            with anyio.move_on_after(1):
                await self._ended.wait()
        self._scope.cancel()

    def reset(self) -> None:
        """End the TCP connection by a reset."""
        raw: socket.socket = self._stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._scope.cancel()

    async def _refuse(self, status: int, body: str) -> None:
        self._protocol.send_response(self._protocol.reject(HTTPStatus(status), body))
        await self._flush()

    async def _flush(self) -> None:
        # The task that reads from the client notices that it is gone.
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with self._turn:
                for data in self._protocol.data_to_send():
                    if data:
                        await self._stream.send(data)

    async def _from_client(self, upstream: websockets.ClientConnection) -> None:
        async with anyio.create_task_group() as late:
            async for frame in self._frames():
                if event_of(text_of(frame))[1] in _REVIVING:
                    self._deaf = frozenset()
                with suppress(websockets.ConnectionClosed):  # the other direction notices, and ends both
                    await self._carry("pushes", frame, upstream.send, late)
            late.cancel_scope.cancel()
        self._ended.set()
        self._scope.cancel()

    async def _frames(self) -> AsyncIterator[_Frame]:
        """Yield the client's frames, whole, until it closes."""
        parts: list[bytes] = []
        opcode = Opcode.TEXT
        while self._protocol.close_rcvd is None:
            try:
                self._protocol.receive_data(await self._stream.receive())
            except anyio.EndOfStream:
                return
            await self._orders.wait_while_frozen("sockets")
            await self._flush()
            for event in self._protocol.events_received():
                assert isinstance(event, Frame)
                if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    opcode = opcode if event.opcode is Opcode.CONT else event.opcode
                    parts.append(bytes(event.data))
                    if event.fin:
                        whole, parts = b"".join(parts), []
                        yield whole.decode() if opcode is Opcode.TEXT else whole

    async def _to_client(self, upstream: websockets.ClientConnection) -> None:
        async with anyio.create_task_group() as late:
            with suppress(websockets.ConnectionClosed):  # its code is passed on
                async for frame in upstream:
                    await self._orders.wait_while_frozen("sockets")
                    kind = kind_of(frame)
                    if kind in self._deaf:
                        self._orders.struck["swallow"] += 1
                    else:
                        await self._carry(kind, frame, self.send, late)
            late.cancel_scope.cancel()
        await self.close(upstream.close_code or 1006)

    async def _carry(
        self, kind: Kind, frame: _Frame, send: Callable[[_Frame], Awaitable[None]], late: TaskGroup
    ) -> None:
        """Send a frame on as ordered: not, twice, in part, or later."""
        order = self._orders.strike(kind, text_of(frame))
        match order.action if order else None:
            case "drop":
                pass
            case "double":
                await send(frame)
                await send(frame)
            case "truncate":
                await send(frame[: len(frame) // 2])
            case "delay" if order is not None:
                late.start_soon(_send_later, order.number, send, frame)
            case _:
                await send(frame)


async def _send_later(seconds: float, send: Callable[[_Frame], Awaitable[None]], frame: _Frame) -> None:
    await anyio.sleep(seconds)
    await send(frame)
