"""Which fault strikes what passes by? A list of orders, asked for each frame, socket and request; no I/O here."""

import json
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["rows", "broadcasts", "replies", "pushes", "sockets", "requests"]
"""What a fault strikes: three kinds of frames to the client, frames from it, new sockets, HTTP requests."""

Action = Literal[
    "drop", "delay", "double", "truncate", "refuse", "hang up", "lose the answer", "answer in its place"
]

_KINDS: Final[dict[str, Kind]] = {"postgres_changes": "rows", "broadcast": "broadcasts"}


@dataclass(slots=True)
class Order:
    """One fault that was ordered.

    Attributes:
        left: how often it will still strike; None is for ever.
        matching: it strikes only where this text occurs: in the frame, or in a request's method and path.
        number: seconds of a delay, status of a refusal, close code of a hang-up.
        body: what a refusal, or an answer in the stack's place, says.
        over_bytes: it strikes only requests with a larger body.
        holding: it strikes only requests whose body holds this text.
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
        """Whether it strikes this frame, socket or request."""
        return (
            self.kind == kind
            and self.after < 0
            and self.matching in text
            and len(body) > self.over_bytes
            and self.holding in body
        )


class Orders:
    """All that is ordered. The first order that fits strikes; `struck` counts what each action has hit."""

    def __init__(self) -> None:
        self.struck: Counter[str] = Counter()
        self._orders: list[Order] = []
        self._limit: tuple[float, float] | None = None
        self._passed: deque[float] = deque()

    def add(self, order: Order) -> None:
        """Have it strike from now on, after those ordered before it."""
        self._orders.append(order)

    def limit_rate(self, per_second: float, window_seconds: float) -> None:
        """Let rows and broadcasts vanish while more than that come, on the average of the window."""
        self._limit = per_second, window_seconds
        self._passed.clear()

    def heal(self) -> None:
        """Forget every order; the counts stay."""
        self._orders.clear()
        self._limit = None

    def strike_answer(self, text: str, body: bytes) -> Order | None:
        """The order that strikes an answer for its size, if any."""
        for order in self._orders:
            if 0 <= order.after < len(body) and order.matching in text:
                self.struck[order.action] += 1
                return order
        return None

    def strike(self, kind: Kind, text: str, now: float, body: bytes = b"") -> Order | None:
        """The order that strikes this one, if any; `now` is a monotonic time in seconds."""
        if kind in ("rows", "broadcasts") and self._is_over_limit(now):
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

    def _is_over_limit(self, now: float) -> bool:
        if self._limit is None:
            return False
        per_second, window_seconds = self._limit
        # As the real server counts: what is dropped counts too, so a burst silences the whole window after it.
        self._passed.append(now)
        while self._passed[0] <= now - window_seconds:
            self._passed.popleft()
        return len(self._passed) > per_second * window_seconds


def kind_of(frame: str | bytes) -> Kind:
    """What a frame from the server is; binary ones are broadcasts."""
    if isinstance(frame, bytes):
        return "broadcasts"
    return _KINDS.get(event_of(frame)[1], "replies")


def event_of(frame: str) -> tuple[str, str]:
    """The topic and the event of a text frame of either version; empty where it has none."""
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
    """A frame as text, to look for something in it."""
    return frame if isinstance(frame, str) else frame.decode(errors="replace")
