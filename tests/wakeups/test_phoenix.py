"""What follows from a frame, or from none? The channel without a socket, a loop or a clock."""

import json
import struct
from typing import Any, get_args
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from runtime.wakeups import Path
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
from runtime.wakeups.phoenix import PhoenixChannel, Timings

WORKER = UUID("12345678-1234-5678-1234-567812345678")
TOPIC = f"realtime:runtime:{WORKER}"
BOTH: tuple[Path, ...] = ("broadcast", "postgres_changes")
SUBSCRIBED = "Subscribed to PostgreSQL"


def make(paths: tuple[Path, ...] = BOTH, patterns: tuple[str, ...] = ("task.output",)) -> PhoenixChannel:
    return PhoenixChannel(WORKER, patterns, paths)


def frame(event: str, payload: Any, *, ref: str | None = None, join_ref: str | None = None) -> str:
    return json.dumps([join_ref, ref, TOPIC, event, payload])


def reply(ref: str = "1", status: str = "ok", **response: Any) -> str:
    return frame("phx_reply", {"status": status, "response": response}, ref=ref, join_ref=ref)


def system(message: str = SUBSCRIBED, status: str = "ok", extension: str = "postgres_changes") -> str:
    return frame("system", {"message": message, "status": status, "extension": extension}, join_ref="1")


def row(number: Any = 7, **changes: Any) -> str:
    data = {"schema": "public", "table": "consciousness_stream", "errors": None, "record": {"id": number}}
    return frame("postgres_changes", {"ids": [1], "data": {**data, **changes}})


def beat(nonce: str) -> str:
    return row(schema="runtime", table="beats", record={"nonce": nonce, "worker": str(WORKER)})


def broadcast(event: str, payload: Any, topic: str = TOPIC) -> bytes:
    name, body = event.encode(), json.dumps(payload).encode()
    head = struct.pack("BBBBB", 4, len(topic), len(name), 2, 1)
    return head + topic.encode() + name + b"{}" + body


def nonce_of(effects: list[Effect]) -> str:
    return next(effect.nonce for effect in effects if isinstance(effect, Prove))


def sent(effects: list[Effect]) -> list[list[Any]]:
    return [json.loads(effect.frame) for effect in effects if isinstance(effect, Send)]


def attend(channel: PhoenixChannel, start: int, end: int, *, by: Path) -> list[Effect]:
    """Answer heartbeats, and bring nonces back by one path, for some seconds; returns what else was said."""
    said: list[Effect] = []
    for now in range(start, end):
        for effect in channel.tick(now):
            if isinstance(effect, Send):
                ref = json.loads(effect.frame)[1]
                channel.receive(json.dumps([None, ref, "phoenix", "phx_reply", {"status": "ok"}]), now)
            elif isinstance(effect, Prove):
                nonce = effect.nonce
                channel.receive(
                    broadcast("nonce", {"nonce": nonce}) if by == "broadcast" else beat(nonce), now
                )
            else:
                said.append(effect)
    return said


def live(paths: tuple[Path, ...] = BOTH) -> PhoenixChannel:
    """A channel with every one of its paths live, at 0 seconds."""
    channel = make(paths)
    channel.open(0, "jwt")
    effects = channel.receive(reply(), 0)
    if "postgres_changes" in paths:
        effects += channel.receive(system(), 0)
    for effect in effects:
        if isinstance(effect, Prove):
            channel.receive(broadcast("nonce", {"nonce": effect.nonce}), 0)
            channel.receive(beat(effect.nonce), 0)
    return channel


# Joining


def test_the_join_speaks_version_two_and_carries_the_token_and_our_bindings() -> None:
    [[join_ref, ref, topic, event, payload]] = sent(make().open(0, "jwt"))
    assert (join_ref, ref, topic, event) == ("1", "1", TOPIC, "phx_join")
    assert payload["access_token"] == "jwt"
    config = payload["config"]
    assert config["private"] is True
    stream, beats = config["postgres_changes"]
    assert stream == {
        "event": "INSERT", "schema": "public", "table": "consciousness_stream", "select": ["id", "key"],
        "filter": "key=in.(task.output)",
    }  # fmt: skip
    assert beats["filter"] == f"worker=eq.{WORKER}"


def test_wildcards_and_too_many_keys_cannot_be_filtered() -> None:
    for patterns in (("a.b", "task.>"), tuple(f"a.b{number}" for number in range(101)), ()):
        [[*_, payload]] = sent(make(patterns=patterns).open(0, None))
        assert "filter" not in payload["config"]["postgres_changes"][0]
    [[*_, payload]] = sent(make(("broadcast",)).open(0, None))
    assert payload["config"]["postgres_changes"] == []
    assert "access_token" not in payload


def test_a_join_without_an_answer_ends_the_socket_at_its_deadline() -> None:
    channel = make()
    channel.open(0, None)
    assert channel.tick(19.9) == []
    assert channel.tick(20) == [Close("the join was not answered")]


@pytest.mark.parametrize(
    ("reason", "refusal"),
    [
        ("ClientJoinRateLimitReached: Too many joins per second", RefusalKind.RATE),
        ("ConnectionRateLimitReached: Too many connected users", RefusalKind.RATE),
        ("ChannelRateLimitReached: Too many channels", RefusalKind.RATE),
        ("IncreaseConnectionPool: Please increase your connection pool size", RefusalKind.RATE),
        ("DatabaseConnectionRateLimitReached: Too many database connections attempts per second", RefusalKind.RATE),
        ("Too many messages per second", RefusalKind.RATE),
        ("InvalidJWTToken: Token has expired 3 seconds ago", RefusalKind.TOKEN),
        ("InvalidJWTToken: Fields `role` and `exp` are required in JWT", RefusalKind.TOKEN),
        ("MalformedJWT: The token provided is not a valid JWT", RefusalKind.TOKEN),
        ("JwtSignatureError: Failed to validate JWT signature", RefusalKind.TOKEN),
        ("Token has expired 0 seconds ago", RefusalKind.TOKEN),
        ("API key is missing", RefusalKind.TOKEN),
        ("Unauthorized: You do not have permissions to read from this Channel topic: x", RefusalKind.PRIVATE),
        ("You no longer have permission to read from this Channel topic: x", RefusalKind.OPERATOR),
        ("PrivateOnly: This project only allows private channels", RefusalKind.OPERATOR),
        ("RealtimeDisabledForTenant: Realtime disabled for this tenant", RefusalKind.OPERATOR),
        ("TenantNotFound: Tenant with the given ID does not exist", RefusalKind.OPERATOR),
        ("RealtimeRestarting: Realtime is restarting, please standby", RefusalKind.RETRY),
        ("MissingPartition: Realtime was unable to find the expected messages partition", RefusalKind.PRIVATE),
        ("Realtime was unable to connect to the project database", RefusalKind.RETRY),
        ("", RefusalKind.RETRY),
    ],
)  # fmt: skip
def test_a_refused_join_says_its_class_in_its_text(reason: str, refusal: RefusalKind) -> None:
    assert classify(reason) is refusal
    channel = make()
    channel.open(0, None)
    [close] = channel.receive(reply(status="error", reason=reason), 1)
    assert isinstance(close, Close)
    assert close.refusal is refusal
    assert reason in close.why


# Live per path


def test_postgres_changes_is_live_on_the_system_message_and_never_on_the_join_reply() -> None:
    channel = make(("postgres_changes",))
    channel.open(0, None)
    assert channel.receive(reply(), 1) == []
    effects = channel.receive(system(), 2)
    assert effects[0] == Live("postgres_changes")
    assert isinstance(effects[1], Prove)


def test_broadcast_is_live_when_its_first_nonce_has_come_back() -> None:
    channel = make(("broadcast",))
    channel.open(0, None)
    [prove] = channel.receive(reply(), 1)
    assert isinstance(prove, Prove)
    assert channel.receive(broadcast("wake", {"keys": ["a.b"]}), 1) == [Wake("broadcast")]
    assert channel.receive(broadcast("answer", {}), 1) == [Wake("answer")]
    assert channel.receive(broadcast("due", {"keys": []}), 1) == [Wake("due")]
    assert channel.receive(broadcast("nonce", {"nonce": prove.nonce}), 2) == [Live("broadcast")]


def test_a_nonce_that_we_never_sent_proves_nothing() -> None:
    channel = make()
    channel.open(0, None)
    channel.receive(reply(), 1)
    assert channel.receive(broadcast("nonce", {"nonce": "forged"}), 2) == []
    assert channel.receive(beat("forged"), 2) == []


def test_a_second_reply_to_the_join_changes_nothing() -> None:
    channel = live()
    assert channel.receive(reply(), 1) == []
    assert channel.receive(reply(status="error", reason="late"), 1) == []


def test_a_second_subscribed_is_a_gap_unless_an_own_token_push_caused_it() -> None:
    channel = live()
    assert channel.receive(system(), 1) == [Gap("postgres_changes", "the server subscribed anew")]
    assert sent(channel.push_token("other", 2))[0][3] == "access_token"
    assert channel.receive(system(), 3) == []
    assert isinstance(channel.receive(system(), 4)[0], Gap)
    # A push that made the server do nothing does not excuse a gap much later.
    channel.push_token("third", 5)
    assert isinstance(channel.receive(system(), 100)[0], Gap)


def test_a_token_is_pushed_once_and_only_on_a_joined_channel() -> None:
    channel = make()
    assert channel.push_token("early", 0) == []
    channel.open(0, "jwt")
    assert channel.push_token("early", 0) == []
    channel.receive(reply(), 1)
    assert channel.push_token("jwt", 2) == []
    [[join_ref, ref, _, event, payload]] = sent(channel.push_token("new", 3))
    assert (join_ref, event, payload) == ("1", "access_token", {"access_token": "new"})
    assert ref is not None
    assert channel.push_token("new", 4) == []


def test_a_path_that_never_comes_leaves_the_other_alone_and_is_mended_later() -> None:
    channel = make()
    channel.open(0, None)
    nonce = nonce_of(channel.receive(reply(), 0))
    channel.receive(broadcast("nonce", {"nonce": nonce}), 0)
    assert attend(channel, 1, 329, by="broadcast") == [
        Lost("postgres_changes", "the server did not say that it subscribed")
    ]
    assert [type(effect) for effect in attend(channel, 330, 331, by="broadcast")] == [Lost, Close]


def test_a_path_that_comes_late_is_live_all_the_same() -> None:
    channel = make()
    channel.open(0, None)
    nonce = nonce_of(channel.receive(reply(), 0))
    channel.receive(system(), 1)
    assert Lost("broadcast", "deaf: no nonce came back in time") in channel.tick(10)
    assert channel.receive(broadcast("nonce", {"nonce": nonce}), 12) == [Live("broadcast")]


def test_a_lost_path_is_told_once() -> None:
    channel = make()
    channel.open(0, None)
    channel.receive(reply(), 0)
    channel.receive(beat(nonce_of(channel.receive(system(), 0))), 0)
    assert attend(channel, 1, 300, by="postgres_changes") == [
        Lost("broadcast", "deaf: no nonce came back in time")
    ]


def test_a_subscribe_error_of_a_live_path_starts_over() -> None:
    effects = live().receive(system('{:error, "Too many database timeouts"}', "error"), 1)
    assert isinstance(effects[0], Lost)
    assert effects[-1] == Close('postgres_changes: {:error, "Too many database timeouts"}', RefusalKind.RATE)


# Heartbeats


def test_heartbeats_carry_a_ref_and_end_the_socket_when_unanswered() -> None:
    channel = live()
    [[join_ref, ref, topic, event, payload]] = sent(channel.tick(25))
    assert (join_ref, topic, event, payload) == (None, "phoenix", "heartbeat", {})
    assert ref
    assert channel.tick(34.9) == []
    effects = channel.tick(35)
    assert effects[-1] == Close("a heartbeat was not answered")


def test_an_answered_heartbeat_moves_on_and_another_ref_answers_nothing() -> None:
    channel = live()
    [[_, ref, *_]] = sent(channel.tick(25))
    channel.receive(json.dumps([None, "999", "phoenix", "phx_reply", {"status": "ok"}]), 26)
    channel.receive(json.dumps([None, ref, "phoenix", "phx_reply", {"status": "ok"}]), 27)
    assert channel.tick(36) == []
    assert len(sent(channel.tick(50))) == 1


# Deafness


def test_a_nonce_that_does_not_come_back_means_deaf_though_heartbeats_are_answered() -> None:
    channel = live()
    [[_, ref, *_]] = sent(channel.tick(25))
    channel.receive(json.dumps([None, ref, "phoenix", "phx_reply", {"status": "ok"}]), 25)
    effects = channel.tick(60)
    nonce = nonce_of(effects)
    [[_, ref, *_]] = sent(effects)
    channel.receive(json.dumps([None, ref, "phoenix", "phx_reply", {"status": "ok"}]), 60)
    # One path delivers, the other is deaf.
    channel.receive(broadcast("nonce", {"nonce": nonce}), 61)
    effects = channel.tick(70)
    assert effects[0] == Lost("postgres_changes", "deaf: no nonce came back in time")
    assert Lost("broadcast", effects[-1].why) in effects  # type: ignore[union-attr]
    assert isinstance(effects[-1], Close)


def test_t3_a_path_is_proved_by_any_nonce_whatever_became_of_the_others() -> None:
    channel = make()
    channel.open(0, "jwt")
    lost = nonce_of(channel.receive(reply(), 0))
    kept = nonce_of(channel.receive(system(), 0))
    assert lost != kept
    assert channel.receive(broadcast("nonce", {"nonce": kept}), 1) == [Live("broadcast")]
    channel.receive(beat(kept), 1)
    assert attend(channel, 2, 200, by="broadcast")[:1] != [
        Lost("broadcast", "deaf: no nonce came back in time")
    ]


@pytest.mark.parametrize("seconds", [1, 4, 7])
def test_t3_a_path_that_begins_to_deliver_late_is_asked_again_in_time(seconds: int) -> None:
    channel = make()
    effects = channel.open(0, "jwt") + channel.receive(reply(), 0) + channel.receive(system(), 0)
    said: list[Effect] = []
    for now in range(1, 60):
        effects += channel.tick(now)
        for effect in effects:
            # What was sent before the server read the log is lost for ever.
            if isinstance(effect, Prove) and now > seconds:
                said += channel.receive(broadcast("nonce", {"nonce": effect.nonce}), now)
                said += channel.receive(beat(effect.nonce), now)
            elif isinstance(effect, Send) and '"heartbeat"' in effect.frame:
                ref = json.loads(effect.frame)[1]
                channel.receive(json.dumps([None, ref, "phoenix", "phx_reply", {"status": "ok"}]), now)
            elif isinstance(effect, Lost | Close):
                said.append(effect)
        effects = []
    assert said == [Live("broadcast")]


def test_t3_a_path_that_is_well_is_asked_once_in_a_minute() -> None:
    channel, asked = live(), 0
    for now in range(1, 601):
        for effect in channel.tick(now):
            if isinstance(effect, Prove):
                asked += 1
                channel.receive(broadcast("nonce", {"nonce": effect.nonce}), now)
                channel.receive(beat(effect.nonce), now)
            elif isinstance(effect, Send):
                ref = json.loads(effect.frame)[1]
                channel.receive(json.dumps([None, ref, "phoenix", "phx_reply", {"status": "ok"}]), now)
    assert asked == 10


def test_doubt_asks_at_once_but_not_twice() -> None:
    channel = live()
    [prove] = channel.doubt(5)
    assert isinstance(prove, Prove)
    assert channel.doubt(6) == []


# Rows and broadcasts


def test_a_row_is_a_hint_and_its_payload_is_not_trusted() -> None:
    channel = live()
    assert channel.receive(row(7), 1) == [Wake("postgres_changes", 7)]
    assert channel.receive(row("7"), 1) == [Wake("postgres_changes", None)]
    assert channel.receive(row(record={}), 1) == [Wake("postgres_changes", None)]
    assert channel.receive(row(2**80), 1) == [Wake("postgres_changes", 2**80)]
    gap, wake = channel.receive(row(errors=["Error 413: Payload Too Large"], record={}), 1)
    assert isinstance(gap, Gap)
    assert wake == Wake("postgres_changes")


def test_frames_of_other_channels_and_older_joins_are_dropped() -> None:
    channel = live()
    assert channel.receive(json.dumps([None, None, "realtime:other", "phx_close", {}]), 1) == []
    assert channel.receive(frame("phx_close", {}, join_ref="0"), 1) == []
    assert channel.receive(broadcast("wake", {}, topic="realtime:other"), 1) == []
    assert channel.counts["not ours"] == 3


@pytest.mark.parametrize("event", ["phx_close", "phx_error"])
def test_a_closed_or_crashed_channel_is_left_with_its_socket(event: str) -> None:
    effects = live().receive(frame(event, {}, join_ref="1"), 1)
    assert [type(effect) for effect in effects] == [Lost, Lost, Close]


def test_a_token_that_expired_asks_for_a_new_one_first() -> None:
    effects = live().receive(system("Token has expired 0 seconds ago", "error", "system"), 1)
    assert isinstance(effects[-1], Close)
    assert effects[-1].refusal is RefusalKind.TOKEN


def test_the_servers_goodbye_waits_for_the_socket_to_close() -> None:
    assert live().receive(system("Server requested disconnect", "ok", "system"), 1) == []


def test_the_end_of_a_socket_loses_what_was_live_and_nothing_else() -> None:
    assert live().end("gone") == [Lost("broadcast", "gone"), Lost("postgres_changes", "gone")]
    assert make().end("gone") == []


# Anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
EVENTS = st.sampled_from(
    ["phx_reply", "system", "postgres_changes", "broadcast", "phx_close", "phx_error", "presence_state"]
)
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["ok", "error"]) | JSON,
        "message": st.just(SUBSCRIBED) | JSON,
        "extension": st.sampled_from(["postgres_changes", "system"]) | JSON,
        "response": JSON,
        "event": st.sampled_from(["wake", "nonce"]) | JSON,
        "payload": st.fixed_dictionaries({"nonce": JSON}) | JSON,
        "data": st.fixed_dictionaries({"table": st.just("beats"), "record": JSON}) | JSON,
    },
)
FRAMES = (
    st.text()
    | st.binary()
    | JSON.map(json.dumps)
    | st.tuples(
        st.sampled_from([None, "0", "1"]), st.sampled_from([None, "1", "2", "3"]), st.just(TOPIC), EVENTS, SHAPED
    ).map(json.dumps)
    | st.tuples(JSON, JSON, st.just(TOPIC) | JSON, EVENTS | JSON, SHAPED | JSON).map(json.dumps)
    | st.builds(lambda head, rest: bytes([4, *head]) + rest, st.lists(st.integers(0, 255), max_size=4), st.binary())
    | st.builds(broadcast, st.sampled_from(["wake", "nonce", "x"]), JSON)
)  # fmt: skip


@given(st.lists(FRAMES, max_size=20))
@settings(max_examples=300, deadline=None)
def test_no_frame_raises(frames: list[str | bytes]) -> None:
    channel = make()
    channel.open(0, None)
    for now, each in enumerate(frames):
        for effect in channel.receive(each, now):
            assert isinstance(effect, get_args(Effect))


class AnyConversation(RuleBasedStateMachine):
    """A server that says anything, at any time; what must hold, holds after every frame and every tick."""

    @initialize(paths=st.sampled_from([BOTH, ("broadcast",), ("postgres_changes",)]))
    def begin(self, paths: tuple[Path, ...]) -> None:
        self.now = 0.0
        self.channel = PhoenixChannel(WORKER, ["a.b"], paths, Timings())
        self.live: set[str] = set()
        self.proofs: set[str] = set()
        self.nonces: list[str] = []
        self.lost: set[str] = set()
        self.close: Close | None = None
        self.heartbeat: tuple[str, float] | None = None
        self._note(self.channel.open(0, "jwt"))

    def _note(self, effects: list[Effect]) -> None:
        assert not (self.close and effects), "after a Close nothing more is said"
        for effect in effects:
            assert self.close is None, "a Close is the last word"
            match effect:
                case Close():
                    self.close = effect
                    assert not self.live, "what was live is lost before the end"
                case Live(path):
                    assert path in self.proofs, "live only after its proof"
                    assert path not in self.live
                    self.live.add(path)
                    self.lost.discard(path)
                case Lost(path):
                    assert path not in self.lost, "told once"
                    self.live.discard(path)
                    self.lost.add(path)
                case Prove(nonce):
                    self.nonces.append(nonce)
                case Send(text):
                    join_ref, ref, topic, event, _ = json.loads(text)
                    assert ref is not None
                    assert (topic == "phoenix") == (event == "heartbeat") == (join_ref is None)
                    if event == "heartbeat":
                        self.heartbeat = (ref, self.now)

    @rule(given=FRAMES)
    def anything(self, given: str | bytes) -> None:
        if isinstance(given, str) and SUBSCRIBED in given:
            self.proofs.add("postgres_changes")
        self._note(self.channel.receive(given, self.now))

    @rule()
    def answer_the_join(self) -> None:
        self._note(self.channel.receive(reply(), self.now))

    @rule()
    def subscribe(self) -> None:
        self.proofs.add("postgres_changes")
        self._note(self.channel.receive(system(), self.now))

    @rule(data=st.data(), by=st.sampled_from(BOTH))
    def bring_a_nonce_back(self, data: Any, by: str) -> None:
        if self.nonces:
            nonce = data.draw(st.sampled_from(self.nonces[-8:]))
            self.proofs.add(by)
            given = broadcast("nonce", {"nonce": nonce}) if by == "broadcast" else beat(nonce)
            self._note(self.channel.receive(given, self.now))

    @rule()
    def answer_the_heartbeat(self) -> None:
        if self.heartbeat:
            text = json.dumps([None, self.heartbeat[0], "phoenix", "phx_reply", {"status": "ok"}])
            self.heartbeat = None
            self._note(self.channel.receive(text, self.now))

    @rule(token=st.text(min_size=1, max_size=3))
    def push_a_token(self, token: str) -> None:
        self._note(self.channel.push_token(token, self.now))

    @rule()
    def doubt(self) -> None:
        self._note(self.channel.doubt(self.now))

    @rule(seconds=st.floats(0, 40))
    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.close is None and self.now < end:
            self._note(self.channel.tick(self.now))
            self.now = min(end, self.now + max(self.channel.rest(self.now), 0.01))
        self.now = end
        self._note(self.channel.tick(self.now))

    @invariant()
    def an_unanswered_heartbeat_ends_it(self) -> None:
        if getattr(self, "heartbeat", None) and self.close is None:
            assert self.heartbeat is not None
            assert self.now < self.heartbeat[1] + 10 + 0.02

    @invariant()
    def a_lost_path_is_followed_by_another_start(self) -> None:
        if getattr(self, "lost", None) and self.close is None:
            assert self.channel.rest(self.now) < 300

    def teardown(self) -> None:
        """With a server that only answers heartbeats from now on, a path that is missing leads to a new start."""
        if not hasattr(self, "channel"):
            return
        missing = set(self.channel.paths) - self.live
        for _ in range(400):
            if self.close is not None:
                return
            self.answer_the_heartbeat()
            self.pass_time(1)
        assert self.close is not None, (
            f"nothing came back for 400 s, and {missing or self.live} is believed in"
        )


TestAnyConversation = AnyConversation.TestCase
TestAnyConversation.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
