"""What do the frames of a Realtime channel mean, and what follows? Sans-I/O: frames and time in, effects out.

Version 2.0.0 of the protocol: text frames are `[join_ref, ref, topic, event, payload]`, and broadcasts from the
database come as binary frames (kind 4). One channel on one socket; on any doubt the socket is dropped and everything
starts over, since a second join on the same socket kills the channel in ways that cannot be told apart.
"""

import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal
from uuid import UUID, uuid4

from runtime.encoding.json import decode
from runtime.keys import is_exact
from runtime.wakeups import ANSWER, CANCEL, Path

VERSION = "2.0.0"
_BINARY_BROADCAST = 4
_SUBSCRIBED = "Subscribed to PostgreSQL"
_MAX_FILTER_VALUES = 100
_REMEMBERED_NONCES = 32
STILL_MISSING = "a path is still missing"
"""Why a channel starts over though another path is live on it."""


class RefusalKind(Enum):
    """What kind of no it was, which decides when to try again."""

    RETRY = "retry"
    RATE = "rate"
    TOKEN = "token"
    PRIVATE = "private"
    OPERATOR = "operator"


_RATE_SIGNS = (
    "RateLimitReached", "Too many", "too many channels", "IncreaseConnectionPool", "DatabaseLackOfConnections",
)  # fmt: skip
_TOKEN_SIGNS = (
    "JWT", "Jwt", "Token has expired", "Fields `role`", "token provided", "signature_error", "API key",
)  # fmt: skip
# Only private topics are out of reach, and with them broadcast: rows can still be listened to.
_PRIVATE_SIGNS = ("MissingPartition", "do not have permissions to read from this Channel")
_OPERATOR_SIGNS = (
    "Unauthorized", "PrivateOnly", "RealtimeDisabled", "Realtime was disabled", "TenantNotFound", "Tenant not found",
    "do not have permissions", "no longer have permission", "TopicNameRequired",
)  # fmt: skip


def classify(text: str) -> RefusalKind:
    """Return what kind of no a refused join, a refused handshake or a system message is, by its text."""
    for refusal, signs in (
        (RefusalKind.RATE, _RATE_SIGNS),
        (RefusalKind.TOKEN, _TOKEN_SIGNS),
        (RefusalKind.PRIVATE, _PRIVATE_SIGNS),
        (RefusalKind.OPERATOR, _OPERATOR_SIGNS),
    ):
        if any(sign in text for sign in signs):
            return refusal
    return RefusalKind.RETRY


@dataclass(frozen=True, slots=True)
class Timings:
    """Every interval and deadline, in seconds."""

    heartbeat: float = 25.0
    heartbeat_reply: float = 10.0
    join: float = 20.0
    subscribe: float = 30.0
    nonce: float = 60.0
    nonce_deadline: float = 10.0
    first_mend: float = 15.0
    mend: float = 300.0


@dataclass(frozen=True, slots=True)
class Send:
    """Send this text frame."""

    frame: str


@dataclass(frozen=True, slots=True)
class Wake:
    """A hint came by this path, or tells of an answer or of an end; about this message, where it says so."""

    path: Path | Literal["answer", "cancel"]
    message: int | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """This path is proved to deliver."""

    path: Path


@dataclass(frozen=True, slots=True)
class Gap:
    """This path may have missed something."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Lost:
    """This path delivers no more."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Prove:
    """Have the database send this nonce."""

    nonce: str


@dataclass(frozen=True, slots=True)
class Close:
    """Drop the socket and start over."""

    why: str
    refusal: RefusalKind = RefusalKind.RETRY


@dataclass(frozen=True, slots=True)
class Joined:
    """The channel is joined."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A broadcast came that is no hint but the thing itself."""

    payload: object


Effect = Send | Wake | Live | Gap | Lost | Prove | Close | Joined | Heard


class _PathState(Enum):
    WAITING = "waiting"
    LIVE = "live"
    LOST = "lost"


@dataclass
class PhoenixChannel:
    """One channel on one fresh socket.

    Args:
        worker: whose wake-ups these are; its topic is `runtime:<worker>`.
        patterns: what its handlers listen to.
        paths: which push paths are wanted.
        timings: intervals and deadlines.
        is_partial: whether a path was left out for now; the channel then ends when it is time to try it again.
        mend_seconds: how long a missing path is left alone before the channel starts over to try it again; the
            driver doubles it with every try, from `timings.first_mend` up to `timings.mend`.

    Attributes:
        counts: frames by kind, for people; unknown ones are counted and never raised.
        is_proved: whether any path was live on this socket.
        is_whole: whether every wanted path was live on this socket.
    """

    worker: UUID
    patterns: Sequence[str]
    paths: Sequence[Path]
    timings: Timings = field(default_factory=Timings)
    is_partial: bool = False
    mend_seconds: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    is_proved: bool = False
    is_whole: bool = False

    def __post_init__(self) -> None:
        self.topic = f"realtime:runtime:{self.worker}"
        self._states: dict[Path, _PathState] = dict.fromkeys(self.paths, _PathState.WAITING)
        self._ref = 0
        self._join_ref: str | None = None
        self._is_joined = False
        self._is_closed = False
        self._join_deadline: float | None = None
        self._subscribe_deadline: float | None = None
        self._heartbeat_at: float | None = None
        self._heartbeat_ref: str | None = None
        self._heartbeat_deadline: float | None = None
        self._nonce_at: float | None = None
        # By when each of these paths must have brought one of our nonces back.
        self._proof_deadlines: dict[Path, float] = {}
        self._sent_nonces: deque[str] = deque(maxlen=_REMEMBERED_NONCES)
        self._mend_at: float | None = None
        self._token: str | None = None
        self._resubscribes_until = 0.0

    # Time and the outside

    def open(self, now: float, token: str | None) -> list[Effect]:
        """The socket is open: join. `token` is a JWT, or None to be who the apikey says."""
        self._join_ref = self._next_ref()
        self._token = token
        payload: dict[str, Any] = {"config": self._config()}
        if token is not None:
            payload["access_token"] = token
        self._join_deadline = now + self.timings.join
        self._heartbeat_at = now + self.timings.heartbeat
        if self.is_partial:
            self._mend_at = now + self.mend_pause
        return [Send(self._frame(self._join_ref, self._join_ref, self.topic, "phx_join", payload))]

    def push_token(self, token: str, now: float) -> list[Effect]:
        """Renew the channel's token; the server ignores the one it has."""
        if not self._is_joined or self._is_closed or token == self._token:
            return []
        self._token = token
        self._resubscribes_until = now + self.timings.subscribe
        payload = {"access_token": token}
        return [Send(self._frame(self._join_ref, self._next_ref(), self.topic, "access_token", payload))]

    def doubt(self, now: float) -> list[Effect]:
        """Work was found that nothing announced: prove the paths at once."""
        may_ask = self._is_joined and not self._is_closed and not self._proof_deadlines
        return self._prove(now) if may_ask else []

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: what is due?"""
        effects: list[Effect] = []
        if self._is_closed:
            return effects
        if self._join_deadline is not None and now >= self._join_deadline:
            return self._close("the join was not answered")
        if self._heartbeat_deadline is not None and now >= self._heartbeat_deadline:
            return self._close("a heartbeat was not answered")
        if self._heartbeat_at is not None and now >= self._heartbeat_at:
            self._heartbeat_at = now + self.timings.heartbeat
            # While the last one is not answered its deadline stands, and a new one would move it.
            if self._heartbeat_ref is None:
                self._heartbeat_ref = self._next_ref()
                self._heartbeat_deadline = now + self.timings.heartbeat_reply
                effects.append(Send(self._frame(None, self._heartbeat_ref, "phoenix", "heartbeat", {})))
        if self._subscribe_deadline is not None and now >= self._subscribe_deadline:
            self._subscribe_deadline = None
            effects += self._fail_path("postgres_changes", "the server did not say that it subscribed", now)
        effects += self._check_proofs(now)
        if self._mend_at is not None and now >= self._mend_at and not self._is_closed:
            effects += self._close(STILL_MISSING)
        if self._nonce_at is not None and now >= self._nonce_at and not self._is_closed:
            effects += self._prove(now)
        return effects

    def rest(self, now: float) -> float:
        """Seconds until `tick` has something to do."""
        moments = [
            moment
            for moment in (
                self._join_deadline,
                self._heartbeat_at,
                self._heartbeat_deadline,
                self._subscribe_deadline,
                self._nonce_at,
                self._mend_at,
                *self._proof_deadlines.values(),
            )
            if moment is not None
        ]
        return max(0.0, min(moments) - now) if moments else self.timings.heartbeat

    def end(self, why: str) -> list[Effect]:
        """The socket is gone: every live path is lost."""
        effects: list[Effect] = [
            Lost(path, why) for path, state in self._states.items() if state is _PathState.LIVE
        ]
        self._states = dict.fromkeys(self._states, _PathState.LOST)
        self._is_closed = True
        return effects

    def receive(self, frame: str | bytes, now: float) -> list[Effect]:
        """A frame came. Nothing that a server can send raises."""
        if self._is_closed:
            return []
        if isinstance(frame, bytes):
            return self._binary(frame, now)
        try:
            join_ref, ref, topic, event, payload = decode(frame)[:5]
        except (ValueError, TypeError, RecursionError, KeyError):
            self.counts["malformed"] += 1
            return []
        if not isinstance(payload, dict):
            payload = {}
        if event == "phx_reply" and ref is not None and ref == self._heartbeat_ref:
            self._heartbeat_ref = self._heartbeat_deadline = None
            return []
        if topic != self.topic or (join_ref is not None and join_ref != self._join_ref):
            # Another channel's, or one of ours that is no more.
            self.counts["not ours"] += 1
            return []
        return self._ours(event, ref, payload, now)

    # Frames of our channel

    def _ours(self, event: object, ref: object, payload: dict[str, Any], now: float) -> list[Effect]:
        match event:
            case "phx_reply" if ref == self._join_ref and not self._is_joined:
                return self._reply(payload, now)
            case "phx_reply":
                return []
            case "system":
                return self._system(payload, now)
            case "postgres_changes":
                return self._change(payload, now)
            case "broadcast":
                return self._broadcast(payload.get("event"), payload.get("payload"), now)
            case "phx_close":
                return self._close("the server closed the channel")
            case "phx_error":
                return self._close("the channel crashed on the server")
        self.counts["unknown"] += 1
        return []

    def _reply(self, payload: dict[str, Any], now: float) -> list[Effect]:
        self._join_deadline = None
        if payload.get("status") != "ok":
            response = payload.get("response")
            reason = response.get("reason") if isinstance(response, dict) else None
            text = str(reason or "no reason given")
            return self._close(f"the join was refused: {text}", classify(text))
        self._is_joined = True
        if "postgres_changes" in self._states:
            # "ok" is not "subscribed": rows in between never arrive.
            self._subscribe_deadline = now + self.timings.subscribe
        return self._prove(now) if "broadcast" in self._states else []

    def _system(self, payload: dict[str, Any], now: float) -> list[Effect]:
        text = str(payload.get("message") or "")
        is_ok = payload.get("status") == "ok"
        if payload.get("extension") != "postgres_changes":
            # On "Server requested disconnect" the close of the socket follows by itself.
            return [] if is_ok else self._close(f"the server ended the channel: {text}", classify(text))
        if "postgres_changes" not in self._states:
            return []
        self._subscribe_deadline = None
        if not is_ok:
            return self._fail_path("postgres_changes", text, now)
        if text != _SUBSCRIBED:
            return []
        if self._states["postgres_changes"] is _PathState.LIVE:
            if now < self._resubscribes_until:
                # A new token makes the server subscribe anew; nothing is missed.
                self._resubscribes_until = 0.0
                return []
            return [Gap("postgres_changes", "the server subscribed anew")]
        effects = self._make_live("postgres_changes")
        return [*effects, *self._prove(now)]

    def _change(self, payload: dict[str, Any], now: float) -> list[Effect]:
        data = payload.get("data")
        if not isinstance(data, dict) or "postgres_changes" not in self._states:
            self.counts["unknown"] += 1
            return []
        record = data.get("record")
        nonce = record.get("nonce") if isinstance(record, dict) else None
        if data.get("table") == "beats" and isinstance(nonce, str):
            return self._proved(nonce, "postgres_changes", now)
        if data.get("errors"):
            # Truncated or withheld; that something was written is all there is to know.
            return [Gap("postgres_changes", str(data["errors"])[:200]), Wake("postgres_changes")]
        number = record.get("id") if isinstance(record, dict) else None
        return [Wake("postgres_changes", number if isinstance(number, int) else None)]

    def _broadcast(self, event: object, payload: object, now: float) -> list[Effect]:
        if "broadcast" not in self._states:
            return []
        nonce = payload.get("nonce") if isinstance(payload, dict) else None
        if event == "nonce" and isinstance(nonce, str):
            return self._proved(nonce, "broadcast", now)
        if event == "wake":
            return [Wake("broadcast")]
        if event == ANSWER:
            return [Wake(ANSWER)]
        if event == CANCEL:
            return [Wake(CANCEL)]
        self.counts["unknown"] += 1
        return []

    def _binary(self, frame: bytes, now: float) -> list[Effect]:
        """A broadcast from the database: kind, four lengths, then topic, event, meta and payload."""
        if len(frame) < 5 or frame[0] != _BINARY_BROADCAST:
            self.counts["malformed"] += 1
            return []
        topic_size, event_size, meta_size, encoding = frame[1:5]
        start = 5 + topic_size
        topic, event = frame[5:start], frame[start : start + event_size]
        payload = frame[start + event_size + meta_size :]
        try:
            data = decode(payload) if encoding == 1 else None
            if topic.decode() != self.topic:
                self.counts["not ours"] += 1
                return []
            return self._broadcast(event.decode(), data, now)
        except (ValueError, RecursionError):
            self.counts["malformed"] += 1
            return []

    # Paths

    def _make_live(self, path: Path) -> list[Effect]:
        if self._states[path] is _PathState.LIVE:
            return []
        self._states[path] = _PathState.LIVE
        self.is_proved = True
        if not self.is_partial and all(state is _PathState.LIVE for state in self._states.values()):
            self.is_whole = True
            self._mend_at = None
        return [Live(path)]

    @property
    def mend_pause(self) -> float:
        """How long a missing path is left alone, in seconds."""
        return self.timings.mend if self.mend_seconds is None else self.mend_seconds

    def _proved(self, nonce: str, path: Path, now: float) -> list[Effect]:
        """One of our nonces came back by this path, however late and whichever it was: the path delivers."""
        if nonce not in self._sent_nonces:
            self.counts["not ours"] += 1
            return []
        self.counts[f"proofs by {path}"] += 1
        if path == "postgres_changes":
            self._subscribe_deadline = None
        self._proof_deadlines.pop(path, None)
        if not self._proof_deadlines:
            self._nonce_at = now + self.timings.nonce
        return self._make_live(path)

    def _prove(self, now: float) -> list[Effect]:
        """Ask for a nonce, and again every quarter of the deadline: one lost nonce fails no path that delivers."""
        self._nonce_at = now + self.timings.nonce
        if not any(path == "broadcast" or state is _PathState.LIVE for path, state in self._states.items()):
            return []
        for path, state in self._states.items():
            if state is _PathState.LIVE or (path == "broadcast" and state is _PathState.WAITING):
                self._proof_deadlines.setdefault(path, now + self.timings.nonce_deadline)
                self._nonce_at = now + self.timings.nonce_deadline / 4
        nonce = uuid4().hex
        self._sent_nonces.append(nonce)
        return [Prove(nonce)]

    def _check_proofs(self, now: float) -> Iterator[Effect]:
        overdue = sorted(path for path, deadline in self._proof_deadlines.items() if now >= deadline)
        for path in overdue:
            del self._proof_deadlines[path]
        if overdue and not self._proof_deadlines:
            self._nonce_at = now + self.timings.nonce
        for path in overdue:
            if not self._is_closed:
                yield from self._fail_path(path, "deaf: no nonce came back in time", now)

    def _fail_path(self, path: Path, why: str, now: float) -> list[Effect]:
        """A path does not deliver: start over, unless another one does and this one never did."""
        if self._states[path] is _PathState.LOST:
            return []
        was_live = self._states[path] is _PathState.LIVE
        self._states[path] = _PathState.LOST
        effects: list[Effect] = [Lost(path, why)]
        others_may = any(state is not _PathState.LOST for state in self._states.values())
        if was_live or not others_may:
            return [*effects, *self._close(f"{path}: {why}", classify(why))]
        if self._mend_at is None:
            self._mend_at = now + self.mend_pause
        return effects

    def _close(self, why: str, refusal: RefusalKind = RefusalKind.RETRY) -> list[Effect]:
        if self._is_closed:
            return []
        return [*self.end(why), Close(why, refusal)]

    # Writing

    def _config(self) -> dict[str, Any]:
        return {
            "broadcast": {"ack": False, "self": False},
            "presence": {"key": "", "enabled": False},
            "postgres_changes": self._bindings() if "postgres_changes" in self._states else [],
            # A private join needs a partition of the day and a policy; rows need neither.
            "private": "broadcast" in self._states,
        }

    def _bindings(self) -> list[dict[str, Any]]:
        """The stream, by our keys where they can be listed, and the row that carries our nonces."""
        stream: dict[str, Any] = {
            "event": "INSERT",
            "schema": "public",
            "table": "consciousness_stream",
            "select": ["id", "key"],
        }
        keys = sorted(set(self.patterns))
        if keys and len(keys) <= _MAX_FILTER_VALUES and all(map(is_exact, keys)):
            stream["filter"] = f"key=in.({','.join(keys)})"
        beats = {
            "event": "INSERT",
            "schema": "runtime",
            "table": "beats",
            "filter": f"worker=eq.{self.worker}",
        }
        return [stream, beats]

    def _next_ref(self) -> str:
        self._ref += 1
        return str(self._ref)

    @staticmethod
    def _frame(join_ref: str | None, ref: str, topic: str, event: str, payload: dict[str, Any]) -> str:
        return json.dumps([join_ref, ref, topic, event, payload], separators=(",", ":"))
