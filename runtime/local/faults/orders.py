"""The faults that were ordered: the proxy asks them for each frame, socket and request."""

import json
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final, Literal

import anyio

Kind = Literal["rows", "broadcasts", "replies", "pushes", "sockets", "requests"]
"""The kinds of traffic: three kinds of frames to the client, frames from it, new sockets, HTTP requests."""

Action = Literal[
    "drop", "delay", "double", "truncate", "refuse", "hang up", "lose the answer", "answer in its place"
]

_PIECE_SECONDS: Final = 0.05
_KINDS: Final[dict[str, Kind]] = {"postgres_changes": "rows", "broadcast": "broadcasts"}


@dataclass(slots=True)
class Order:
    """One fault that was ordered.

    Attributes:
        left: how many more times it strikes; None is for ever.
        matching: it strikes only a frame, or a request's method and path, that contains this text.
        number: seconds of a delay, status of a refusal, close code of a hang-up.
        body: the body of a refusal, or of an answer in the stack's place.
        over_bytes: it strikes only requests with a larger body.
        holding: it strikes only requests whose body contains this text.
        after: it strikes only answers with a larger body, so that the request has its effect.
    """

    action: Action
    kind: Kind
    left: int | None
    matching: str
    number: float = 0
    body: bytes = b'{"message":"refused on order"}'
    over_bytes: int = -1
    holding: bytes = b""
    after: int = -1

    def fits(self, kind: Kind, text: str, body: bytes) -> bool:
        """Return whether it strikes this frame, socket or request."""
        return (
            self.kind == kind
            and self.after < 0
            and self.matching in text
            and len(body) > self.over_bytes
            and self.holding in body
        )


class Orders:
    """All faults that are ordered; the first order that fits strikes.

    Attributes:
        struck: how often each action has struck.
        bytes_per_second: how fast the answers to requests are sent, each for itself; 0 is as fast as possible.
    """

    def __init__(self) -> None:
        self.struck: Counter[str] = Counter()
        self.bytes_per_second = 0.0
        self._orders: list[Order] = []
        self._limit: tuple[float, float] | None = None
        self._passed: deque[float] = deque()
        self._thaws: dict[Kind, anyio.Event] = {}

    def add(self, order: Order) -> None:
        """Let an order strike from now on, after those ordered before it."""
        self._orders.append(order)

    def limit_rate(self, per_second: float, window_seconds: float) -> None:
        """Drop rows and broadcasts while more than that come, on the average of the window."""
        self._limit = per_second, window_seconds
        self._passed.clear()

    def freeze(self, kind: Kind) -> None:
        """Let nothing of this kind pass until `heal`."""
        self._thaws.setdefault(kind, anyio.Event())
        self.struck["freeze"] += 1

    def heal(self) -> None:
        """Forget every order; the counts stay."""
        self._orders.clear()
        self._limit = None
        self.bytes_per_second = 0.0
        for thaw in self._thaws.values():
            thaw.set()
        self._thaws.clear()

    async def wait_while_frozen(self, kind: Kind) -> None:
        """Return at once, or when this kind is no longer frozen."""
        while (thaw := self._thaws.get(kind)) is not None:
            await thaw.wait()

    def strike(self, kind: Kind, text: str, body: bytes = b"") -> Order | None:
        """Return the order that strikes this frame, socket or request, if any."""
        if kind in ("rows", "broadcasts") and self._is_over_limit():
            self.struck["limit the rate"] += 1
            return Order("drop", kind, None, "")
        for order in self._orders:
            if order.fits(kind, text, body):
                if order.left is not None:
                    order.left -= 1
                    if order.left == 0:
                        self._orders.remove(order)
                self.struck[order.action] += 1
                return order
        return None

    def strike_answer(self, text: str, body: bytes) -> Order | None:
        """Return the order that strikes an answer for its size, if any."""
        for order in self._orders:
            if 0 <= order.after < len(body) and order.matching in text:
                self.struck[order.action] += 1
                return order
        return None

    def pieces(self, data: bytes) -> list[tuple[bytes, float]]:
        """Return an answer in the pieces in which it is sent, each with the seconds to wait after it."""
        if not self.bytes_per_second:
            return [(data, 0.0)]
        size = max(1, int(self.bytes_per_second * _PIECE_SECONDS))
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        return [(piece, len(piece) / self.bytes_per_second) for piece in pieces]

    def _is_over_limit(self) -> bool:
        if self._limit is None:
            return False
        now = time.monotonic()
        per_second, window_seconds = self._limit
        # Dropped frames count too, as on the real server: a burst silences the whole window after it.
        self._passed.append(now)
        while self._passed[0] <= now - window_seconds:
            self._passed.popleft()
        return len(self._passed) > per_second * window_seconds


def kind_of(frame: str | bytes) -> Kind:
    """Return the kind of a frame from the server; binary ones are broadcasts."""
    if isinstance(frame, bytes):
        return "broadcasts"
    return _KINDS.get(event_of(frame)[1], "replies")


def event_of(frame: str) -> tuple[str, str]:
    """Return the topic and the event of a text frame of either version; empty where it has none."""
    try:
        data: Any = json.loads(frame)
    except ValueError:
        return "", ""
    if isinstance(data, list) and len(data) >= 4:
        return str(data[2]), str(data[3])
    if isinstance(data, dict):
        return str(data.get("topic", "")), str(data.get("event", ""))
    return "", ""


def text_of(frame: str | bytes) -> str:
    """Return a frame as text, for searching."""
    return frame if isinstance(frame, str) else frame.decode(errors="replace")
