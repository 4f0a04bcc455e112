"""A proxy in front of any Supabase stack that breaks the connection on order.

It knows HTTP, WebSockets and the names of the frames, and nothing of the server behind it.
"""

from collections import Counter
from types import TracebackType
from typing import Self

import anyio
import httpx
from anyio.abc import SocketStream, TaskGroup
from websockets.exceptions import ConnectionClosed

from runtime.local.faults.http import HttpSide
from runtime.local.faults.orders import Action, Kind, Order, Orders
from runtime.local.faults.websocket import WebSocketSide


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
        self._sockets: set[WebSocketSide] = set()
        self._tasks: TaskGroup | None = None

    @property
    def url(self) -> str:
        """The URL to give clients instead of the stack's."""
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
        """Drop frames; cut a request's connection before the stack has seen the request, so that it has no effect."""
        self._order("drop", kind, times, matching)

    def delay(self, kind: Kind, seconds: float, *, times: int | None = None, matching: str = "") -> None:
        """Hold each back for so many seconds; frames that are not struck may overtake it."""
        self._order("delay", kind, times, matching, seconds)

    def double(self, kind: Kind, *, times: int | None = None, matching: str = "") -> None:
        """Send frames twice; send a request to the stack twice, and return the second answer."""
        self._order("double", kind, times, matching)

    def truncate(self, kind: Kind, *, times: int | None = None, matching: str = "") -> None:
        """Cut frames in half; cut the answer to a request in half, and then the connection."""
        self._order("truncate", kind, times, matching)

    def refuse(self, kind: Kind, status: int = 503, *, times: int | None = None, matching: str = "") -> None:
        """Answer new sockets, or requests, with an HTTP status before the stack has seen them."""
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
        """Refuse requests with a page, as a firewall in front of an API does: by their size, or by a text in them."""
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
        """Answer requests in the stack's place; it never sees them."""
        order = Order(
            "answer in its place", "requests", times, matching, status, body.encode(), -1, holding.encode()
        )
        self._orders.add(order)

    def limit_answers(self, over_bytes: int, status: int = 502, *, matching: str = "") -> None:
        """Let requests have their effect, and put a page in the place of each answer that is larger."""
        page = b"<html><body>Bad Gateway</body></html>"
        self._orders.add(Order("refuse", "requests", None, matching, status, page, after=over_bytes))

    def throttle(self, bytes_per_second: float) -> None:
        """Send each answer to a request no faster than this."""
        self._orders.bytes_per_second = bytes_per_second

    def limit_rate(self, per_second: float, *, window_seconds: float = 60) -> None:
        """Drop rows and broadcasts above this average silently, as the real server does above its limit."""
        self._orders.limit_rate(per_second, window_seconds)

    def go_deaf(self, *kinds: Kind) -> None:
        """Drop the rows of all open sockets from now on, while heartbeats are answered.

        The real server has been seen in that state; a fresh join or another token ends it. Name `kinds` to drop others.
        """
        for socket in self._sockets:
            socket.go_deaf(frozenset(kinds or ("rows",)))
        self.struck["go deaf"] += len(self._sockets)

    def freeze(self, kind: Kind) -> None:
        """Stop all sockets, or all requests, old and new, until `heal`: TCP stays open, and the peer is silent."""
        if kind not in ("sockets", "requests"):
            raise ValueError(f"Only sockets or requests freeze, not {kind}: drop or delay frames instead.")
        self._orders.freeze(kind)

    async def close(self, code: int = 1012) -> None:
        """Close all sockets with this code; 1006 ends the connection without a code."""
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
        """Forget all orders. Deaf channels stay deaf until they join again."""
        self._orders.heal()

    def _order(self, action: Action, kind: Kind, times: int | None, matching: str, number: float = 0) -> None:
        is_frame = kind not in ("sockets", "requests")
        if (action == "refuse" and is_frame) or (kind == "sockets" and action in ("double", "truncate")):
            raise ValueError(f"There is no way to {action} {kind}.")
        self._orders.add(Order(action, kind, times, matching, number))

    async def _serve(self, stream: SocketStream) -> None:
        try:
            async with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += await stream.receive()
                if b"upgrade: websocket" not in head.lower():
                    await HttpSide(self._orders, stream, self._client).run(head)
                else:
                    await self._serve_socket(stream, head)
        except* (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionClosed):
            pass  # the client is gone

    async def _serve_socket(self, stream: SocketStream, head: bytes) -> None:
        socket = WebSocketSide(self._orders, stream, self._upstream_url.replace("http", "ws", 1))
        try:
            await socket.run(head, self._sockets)
        finally:
            self._sockets.discard(socket)
