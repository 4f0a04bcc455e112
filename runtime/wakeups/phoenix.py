"""The Phoenix channel protocol of Realtime, without I/O: frames and time in, effects out.

Version 2.0.0 of the protocol: text frames are `[join_ref, ref, topic, event, payload]`, and broadcasts from the
database come as binary frames (kind 4). There is one channel on one socket. On any doubt the driver drops the socket
and starts over, since a second join on the same socket kills the channel in ways that look all alike.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

from runtime.keys import is_exact
from runtime.wakeups import ANSWER, CANCEL, DUE, Path
from runtime.wakeups.effects import (
    Close,
    Effect,
    Gap,
    Live,
    Lost,
    Prove,
    RefusalKind,
    Send,
    Wake,
    classify,
)  # fmt: skip
from runtime.wakeups.frames import PhoenixFrame, read_frame

_SUBSCRIBED = "Subscribed to PostgreSQL"
_MAX_FILTER_VALUES = 100
_REMEMBERED_NONCES = 32
STILL_MISSING = "a path is still missing"
"""The reason for starting over while another path is live on the channel."""


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


class _PathState(Enum):
    WAITING = "waiting"
    LIVE = "live"
    LOST = "lost"


@dataclass
class PhoenixChannel:
    """One channel on one fresh socket.

    Args:
        worker: the worker to be woken; its topic is `runtime:<worker>`.
        patterns: the patterns of its handlers.
        paths: the push paths that are wanted.
        timings: intervals and deadlines.
        is_partial: whether a path was left out for now; the channel then ends when it is time to try that path again.
        mend_seconds: how long a missing path is left alone before the channel starts over to try it again; the
            driver doubles it with every try, from `timings.first_mend` up to `timings.mend`.

    Attributes:
        counts: frames by kind; unknown frames are counted and raise nothing.
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
        # The time by which each of these paths must have brought back one of our nonces.
        self._proof_deadlines: dict[Path, float] = {}
        self._sent_nonces: deque[str] = deque(maxlen=_REMEMBERED_NONCES)
        self._mend_at: float | None = None
        self._token: str | None = None
        self._resubscribes_until = 0.0

    # Time and the outside

    def open(self, now: float, token: str | None) -> list[Effect]:
        """The socket is open: join. `token` is a JWT, or None for the role of the apikey."""
        self._join_ref = self._next_ref()
        self._token = token
        payload: dict[str, Any] = {"config": self._config()}
        if token is not None:
            payload["access_token"] = token
        self._join_deadline = now + self.timings.join
        self._heartbeat_at = now + self.timings.heartbeat
        if self.is_partial:
            self._mend_at = now + self.mend_pause
        return [Send(PhoenixFrame(self._join_ref, self._join_ref, self.topic, "phx_join", payload).text())]

    def push_token(self, token: str, now: float) -> list[Effect]:
        """Renew the channel's token; the server ignores a token that it has already."""
        if not self._is_joined or self._is_closed or token == self._token:
            return []
        self._token = token
        self._resubscribes_until = now + self.timings.subscribe
        payload = {"access_token": token}
        return [
            Send(PhoenixFrame(self._join_ref, self._next_ref(), self.topic, "access_token", payload).text())
        ]

    def doubt(self, now: float) -> list[Effect]:
        """Work was found that no wake-up announced: prove the paths at once."""
        may_ask = self._is_joined and not self._is_closed and not self._proof_deadlines
        return self._prove(now) if may_ask else []

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: return the effects that are due."""
        effects: list[Effect] = []
        if self._is_closed:
            return effects
        if self._join_deadline is not None and now >= self._join_deadline:
            return self._close("the join was not answered")
        if self._heartbeat_deadline is not None and now >= self._heartbeat_deadline:
            return self._close("a heartbeat was not answered")
        if self._heartbeat_at is not None and now >= self._heartbeat_at:
            self._heartbeat_at = now + self.timings.heartbeat
            # A new heartbeat would move the deadline of one that is not answered yet.
            if self._heartbeat_ref is None:
                self._heartbeat_ref = self._next_ref()
                self._heartbeat_deadline = now + self.timings.heartbeat_reply
                effects.append(
                    Send(PhoenixFrame(None, self._heartbeat_ref, "phoenix", "heartbeat", {}).text())
                )
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
        """Return the seconds until `tick` has something to do."""
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
        """A frame came. No frame of a server raises."""
        if self._is_closed:
            return []
        parsed = read_frame(frame)
        if parsed is None:
            self.counts["malformed"] += 1
            return []
        join_ref, ref, topic, event, payload = parsed
        if event == "phx_reply" and ref is not None and ref == self._heartbeat_ref:
            self._heartbeat_ref = self._heartbeat_deadline = None
            return []
        if topic != self.topic or (join_ref is not None and join_ref != self._join_ref):
            # A frame of another channel, or of an earlier join.
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
            # "ok" does not mean "subscribed" yet: rows written in between never arrive.
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
                # A new token makes the server subscribe anew, without a gap.
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
            # The row is truncated or withheld: all it says is that something was written.
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
        for why in (ANSWER, CANCEL, DUE):
            if event == why:
                return [Wake(why)]
        self.counts["unknown"] += 1
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
        """A nonce came back by this path. If it is any of ours, however late, the path delivers."""
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
        """A path does not deliver: start over, unless it never did and another one does."""
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
            # A private join needs a partition for the day and a policy; postgres_changes needs neither.
            "private": "broadcast" in self._states,
        }

    def _bindings(self) -> list[dict[str, Any]]:
        """The stream, filtered by our keys if they can be listed, and the row that carries our nonces."""
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
