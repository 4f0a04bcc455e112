"""How does a client fare when its way to Supabase breaks? A proxy in front of any stack, which breaks it on order.

It knows HTTP, WebSockets and the names of the frames, and nothing of who serves behind it.
"""

import time
from collections import Counter
from types import TracebackType
from typing import Self

import anyio
import httpx
from anyio.abc import SocketStream, TaskGroup
from websockets.exceptions import ConnectionClosed

from runtime.local.faults.http import HttpSide, UpstreamResponse
from runtime.local.faults.orders import Action, Kind, Order, Orders
from runtime.local.faults.websocket import WebSocketSide

_PIECE_SECONDS = 0.05


class FaultyGateway:
    """A proxy on a port of its own: give clients its `url`, then order faults. Without orders it changes nothing.

    Orders take effect at once and last until they have struck `times` often, or until `heal`. `matching` narrows
    them to frames, or to requests (`"POST /rest/v1/rpc/stream_exchange"`), in which that text occurs.

    Args:
        upstream_url: the stack behind it: `http://127.0.0.1:54321`.
    """

    def __init__(self, upstream_url: str) -> None:
        self.port = 0
        self._upstream_url = upstream_url.rstrip("/")
        self._orders = Orders()
        self._open: dict[Kind, anyio.Event] = {}
        self._sockets: set[WebSocketSide] = set()
        self._tasks: TaskGroup | None = None
        self._bytes_per_second = 0.0

    @property
    def url(self) -> str:
        """What a client is given in the place of the stack's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def struck(self) -> Counter[str]:
        """How often each fault has struck, by its name."""
        return self._orders.struck

    @property
    def sockets(self) -> int:
        """How many WebSockets are open."""
        return len(self._sockets)

    async def __aenter__(self) -> Self:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        self._client = httpx.AsyncClient(base_url=self._upstream_url, timeout=120)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(listener.serve, self._serve)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            return await self._tasks.__aexit__(kind, error, traceback)
        finally:
            with anyio.CancelScope(shield=True):
                await self._client.aclose()

    def drop(self, kind: Kind, *, times: int | None = None, matching: str = "") -> None:
        """Frames vanish; a request's connection is cut before it has reached the stack, so it has no effect."""
        self._order("drop", kind, times, matching)

    def delay(self, kind: Kind, seconds: float, *, times: int | None = None, matching: str = "") -> None:
        """Hold each back for so long. What is not struck may overtake it."""
        self._order("delay", kind, times, matching, seconds)

    def double(self, kind: Kind, *, times: int | None = None, matching: str = "") -> None:
        """Frames come twice; a request reaches the stack twice, and its second answer is returned."""
        self._order("double", kind, times, matching)

    def truncate(self, kind: Kind, *, times: int | None = None, matching: str = "") -> None:
        """Frames end in their middle; so does the answer to a request, and then the connection."""
        self._order("truncate", kind, times, matching)

    def refuse(self, kind: Kind, status: int = 503, *, times: int | None = None, matching: str = "") -> None:
        """Answer new sockets, or requests, with an HTTP status before they have reached the stack."""
        self._order("refuse", kind, times, matching, status)

    def hang_up(self, code: int = 1011, *, times: int | None = None) -> None:
        """Accept new sockets and close them at once."""
        self._order("hang up", "sockets", times, "", code)

    def lose_answer(self, *, times: int | None = None, matching: str = "") -> None:
        """Let requests have their effect, and cut the connection instead of answering."""
        self._order("lose the answer", "requests", times, matching)

    def block(
        self,
        status: int = 403,
        *,
        over_bytes: int = -1,
        holding: str = "",
        times: int | None = None,
        matching: str = "",
    ) -> None:
        """Refuse requests with a page, as what stands in front of an API does: by their size, or by a text in them."""
        page = f"<html><body><h1>{status}</h1>Request blocked.</body></html>".encode()
        order = Order("refuse", "requests", times, matching, status, page, over_bytes, holding.encode())
        self._orders.add(order)

    def answer(
        self,
        body: str = "",
        status: int = 200,
        *,
        holding: str = "",
        times: int | None = None,
        matching: str = "",
    ) -> None:
        """Answer requests in the stack's place, which never sees them."""
        order = Order(
            "answer in its place", "requests", times, matching, status, body.encode(), -1, holding.encode()
        )
        self._orders.add(order)

    def limit_answers(self, over_bytes: int, status: int = 502, *, matching: str = "") -> None:
        """Let requests have their effect, and put a page in the place of each answer that is larger."""
        page = b"<html><body>Bad Gateway</body></html>"
        self._orders.add(Order("refuse", "requests", None, matching, status, page, after=over_bytes))

    def throttle(self, bytes_per_second: float) -> None:
        """Let the answers to requests come no faster than this, each for itself."""
        self._bytes_per_second = bytes_per_second

    def pieces(self, data: bytes) -> list[bytes]:
        """An answer in the pieces in which it is sent."""
        if not self._bytes_per_second:
            return [data]
        size = max(1, int(self._bytes_per_second * _PIECE_SECONDS))
        return [data[at : at + size] for at in range(0, len(data), size)]

    def seconds_for(self, piece: bytes) -> float:
        """How long a piece takes on its way."""
        return len(piece) / self._bytes_per_second if self._bytes_per_second else 0.0

    def limit_rate(self, per_second: float, *, window_seconds: float = 60) -> None:
        """Rows and broadcasts above this average vanish without a word, as above the real server's limit."""
        self._orders.limit_rate(per_second, window_seconds)

    def go_deaf(self, *kinds: Kind) -> None:
        """The zombie: on the sockets of this moment no rows come any more, while heartbeats are answered.

        As with the real server a fresh join or another token revives it. Name other kinds to silence those too.
        """
        for socket in self._sockets:
            socket.go_deaf(frozenset(kinds or ("rows",)))
        self.struck["go deaf"] += len(self._sockets)

    def freeze(self, kind: Kind) -> None:
        """Let nothing pass on sockets, or no request, old or new: TCP lives, the peer says nothing, till `heal`."""
        if kind not in ("sockets", "requests"):
            raise ValueError(f"Only sockets or requests freeze, not {kind}: drop or delay frames instead.")
        self._open.setdefault(kind, anyio.Event())
        self.struck["freeze"] += 1

    async def close(self, code: int = 1012) -> None:
        """Close all sockets with this code; 1006 is no code but a connection that ends without one."""
        for socket in list(self._sockets):
            await socket.close(code)
        self.struck["close"] += 1

    def reset(self) -> None:
        """Reset the TCP connections of all sockets."""
        for socket in list(self._sockets):
            socket.reset()
        self.struck["reset"] += 1

    async def inject(self, frame: str | bytes) -> None:
        """Send a frame of your own to every client, as a forger would."""
        for socket in list(self._sockets):
            await socket.send(frame)
        self.struck["inject"] += 1

    def heal(self) -> None:
        """Forget all orders. Channels that are deaf stay so until they join again."""
        self._orders.heal()
        self._bytes_per_second = 0.0
        for event in self._open.values():
            event.set()
        self._open.clear()

    def _order(self, action: Action, kind: Kind, times: int | None, matching: str, number: float = 0) -> None:
        is_frame = kind not in ("sockets", "requests")
        if (action == "refuse" and is_frame) or (kind == "sockets" and action in ("double", "truncate")):
            raise ValueError(f"There is no way to {action} {kind}.")
        self._orders.add(Order(action, kind, times, matching, number))

    def strike(self, kind: Kind, text: str, body: bytes = b"") -> Order | None:
        """The order that strikes what passes by now, if any."""
        return self._orders.strike(kind, text, time.monotonic(), body)

    def strike_answer(self, text: str, body: bytes) -> Order | None:
        """The order that strikes an answer for its size, if any."""
        return self._orders.strike_answer(text, body)

    async def pass_gate(self, kind: Kind) -> None:
        """Return at once, or when what was frozen is healed."""
        while (gate := self._open.get(kind)) is not None:
            await gate.wait()

    async def forward(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes
    ) -> UpstreamResponse:
        """Have the stack answer a request.

        Raises:
            httpx.HTTPError: it does not answer.
        """
        response = await self._client.request(method, target, headers=headers, content=body)
        return UpstreamResponse(response.status_code, list(response.headers.multi_items()), response.content)

    async def _serve(self, stream: SocketStream) -> None:
        try:
            async with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += await stream.receive()
                if b"upgrade: websocket" not in head.lower():
                    await HttpSide(self, stream).run(head)
                else:
                    await self._serve_socket(stream, head)
        except* (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionClosed):
            pass  # the client is gone, and with it whoever would want to know

    async def _serve_socket(self, stream: SocketStream, head: bytes) -> None:
        socket = WebSocketSide(self, stream, self._upstream_url.replace("http", "ws", 1))
        try:
            await socket.run(head, self._sockets)
        finally:
            self._sockets.discard(socket)
