"""How does one TCP connection carry requests through the faults? One after another, whole."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio
import h11
import httpx
from anyio.abc import SocketStream

if TYPE_CHECKING:
    from runtime.local.faults.proxy import FaultyGateway

_HOP_BY_HOP: Final = frozenset(
    {"connection", "content-encoding", "content-length", "host", "keep-alive", "transfer-encoding"}
)
_Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class UpstreamResponse:
    """What the stack said."""

    status: int
    headers: _Headers
    body: bytes


class HttpSide:
    """The side of the client: `run` serves it until the connection ends, one way or the other."""

    def __init__(self, faults: "FaultyGateway", stream: SocketStream) -> None:
        self._faults = faults
        self._stream = stream
        self._protocol = h11.Connection(h11.SERVER)

    async def run(self, head: bytes) -> None:
        """Answer requests; `head` is what was read of the first."""
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
        """What to send back; nothing means that the connection is to end."""
        await self._faults.pass_gate("requests")
        order = self._faults.strike("requests", f"{method} {target}", body)
        action = order.action if order else None
        if action == "drop":
            return None
        if order is not None and action in ("refuse", "answer in its place"):
            return UpstreamResponse(int(order.number), [], order.body)
        if order is not None and action == "delay":
            await anyio.sleep(order.number)
        try:
            answer = await self._faults.forward(method, target, headers, body)
            if action == "double":
                answer = await self._faults.forward(method, target, headers, body)
        except httpx.HTTPError:
            return None  # the stack is gone, so the way to it ends here as well
        # Frozen meanwhile: the effect is there, the answer is not.
        await self._faults.pass_gate("requests")
        if (late := self._faults.strike_answer(f"{method} {target}", answer.body)) is not None:
            return UpstreamResponse(int(late.number), [], late.body)
        if action == "truncate":
            await self._send(answer, len(answer.body) // 2)
            return None
        return None if action == "lose the answer" else answer

    async def _send(self, answer: UpstreamResponse, until: int) -> None:
        headers = [(name, value) for name, value in answer.headers if name.lower() not in _HOP_BY_HOP]
        if answer.status != 204:
            headers.append(("content-length", str(len(answer.body))))
        data = self._protocol.send(h11.Response(status_code=answer.status, headers=headers)) or b""
        if answer.status != 204:
            data += self._protocol.send(h11.Data(data=answer.body[:until])) or b""
        if until == len(answer.body):
            data += self._protocol.send(h11.EndOfMessage()) or b""
        for piece in self._faults.pieces(data):
            await self._stream.send(piece)
            await anyio.sleep(self._faults.seconds_for(piece))
