"""One TCP connection that carries HTTP requests through the faults, one after another, each whole."""

from typing import Final, NamedTuple

import anyio
import h11
import httpx
from anyio.abc import SocketStream

from runtime.local.faults.orders import Orders

_HOP_BY_HOP: Final = frozenset(
    {"connection", "content-encoding", "content-length", "host", "keep-alive", "transfer-encoding"}
)
_Headers = list[tuple[str, str]]


class UpstreamResponse(NamedTuple):
    status: int
    headers: _Headers
    body: bytes


class HttpSide:
    """The client's side; `run` serves it until the connection ends.

    Args:
        orders: the faults.
        stream: the client's connection.
        upstream: asks the stack.
    """

    def __init__(self, orders: Orders, stream: SocketStream, upstream: httpx.AsyncClient) -> None:
        self._orders = orders
        self._stream = stream
        self._upstream = upstream
        self._protocol = h11.Connection(h11.SERVER)

    async def run(self, head: bytes) -> None:
        """Answer requests; `head` was read of the first one already."""
        self._protocol.receive_data(head)
        while (request := await self._next()) is not None:
            answer = await self._answer(*request)
            if answer is None:
                return
            await self._send(answer, len(answer.body))
            if self._protocol.our_state is not h11.DONE or self._protocol.their_state is not h11.DONE:
                return
            self._protocol.start_next_cycle()

    async def _next(self) -> tuple[str, str, _Headers, bytes] | None:
        head: h11.Request | None = None
        body = b""
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                try:
                    self._protocol.receive_data(await self._stream.receive())
                except anyio.EndOfStream:
                    return None
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = [(name.decode(), value.decode("latin-1")) for name, value in head.headers]
                kept = [(name, value) for name, value in headers if name not in _HOP_BY_HOP]
                return head.method.decode(), head.target.decode(), kept, body
            else:
                return None

    async def _answer(
        self, method: str, target: str, headers: _Headers, body: bytes
    ) -> UpstreamResponse | None:
        """Return the answer to send; None means that the connection is to end."""
        await self._orders.wait_while_frozen("requests")
        order = self._orders.strike("requests", f"{method} {target}", body)
        action = order.action if order else None
        if action == "drop":
            return None
        if order is not None and action in ("refuse", "answer in its place"):
            return UpstreamResponse(int(order.number), [], order.body)
        if order is not None and action == "delay":
            await anyio.sleep(order.number)
        try:
            answer = await self._forward(method, target, headers, body)
            if action == "double":
                answer = await self._forward(method, target, headers, body)
        except httpx.HTTPError:
            return None  # the stack is gone: end the connection as well
        # When requests were frozen meanwhile, the request has had its effect, and its answer waits.
        await self._orders.wait_while_frozen("requests")
        if (late := self._orders.strike_answer(f"{method} {target}", answer.body)) is not None:
            return UpstreamResponse(int(late.number), [], late.body)
        if action == "truncate":
            await self._send(answer, len(answer.body) // 2)
            return None
        return None if action == "lose the answer" else answer

    async def _forward(self, method: str, target: str, headers: _Headers, body: bytes) -> UpstreamResponse:
        response = await self._upstream.request(method, target, headers=headers, content=body)
        return UpstreamResponse(response.status_code, list(response.headers.multi_items()), response.content)

    async def _send(self, answer: UpstreamResponse, until: int) -> None:
        headers = [(name, value) for name, value in answer.headers if name.lower() not in _HOP_BY_HOP]
        if answer.status != 204:
            headers.append(("content-length", str(len(answer.body))))
        data = self._protocol.send(h11.Response(status_code=answer.status, headers=headers)) or b""
        if answer.status != 204:
            data += self._protocol.send(h11.Data(data=answer.body[:until])) or b""
        if until == len(answer.body):
            data += self._protocol.send(h11.EndOfMessage()) or b""
        for piece, seconds in self._orders.pieces(data):
            await self._stream.send(piece)
            await anyio.sleep(seconds)
