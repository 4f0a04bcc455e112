"""Does listening survive what a server, a network and a listener can do? Over real sockets, at short intervals."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import anyio
import jwt
import pytest
from realtime import AsyncRealtimeClient

from runtime.settings import Settings
from runtime.wakeups.client_channel import ClientEndpoint, OwnClient
from runtime.wakeups.phoenix import Timings
from runtime.wakeups.realtime import Pauses, RealtimeWakeups
from tests.wakeups.phoenix_server import IS_RECENT, PhoenixServer, Recorder, listening

pytestmark = pytest.mark.anyio

BOTH = ("broadcast", "postgres_changes")
KEY = jwt.encode({"role": "service_role", "exp": 4_000_000_000}, "x" * 32)
TIMINGS = Timings(
    heartbeat=0.1, heartbeat_reply=0.3, join=0.4, subscribe=0.5, nonce=0.3, nonce_deadline=0.4, mend=1.0
)
PAUSES = Pauses(first=0.02, cap=0.1, rate=0.5, operator=0.5, stable=5.0, open=0.5, close=0.2)


@pytest.fixture
async def server() -> AsyncIterator[PhoenixServer]:
    server = PhoenixServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def recorder(server: PhoenixServer) -> Recorder:
    return Recorder(server)


def wakeups(server: PhoenixServer, **changes: Any) -> RealtimeWakeups:
    settings = Settings.load(
        broadcast=changes.pop("broadcast", True), postgres_changes=changes.pop("postgres_changes", True)
    )
    options = {"keys": ["task.output"], "settings": settings, "timings": TIMINGS, "pauses": PAUSES, **changes}
    return RealtimeWakeups(server.url, options.pop("key", KEY), uuid4(), **options)


def published(server: PhoenixServer) -> AsyncRealtimeClient:
    """The published client, quick to give up."""
    return AsyncRealtimeClient(f"{server.url}/realtime/v1", KEY, max_retries=2, initial_backoff=0.05)


def over(client: AsyncRealtimeClient, server: PhoenixServer, **changes: Any) -> RealtimeWakeups:
    """Wake-ups over the published client, whose joins wait for their answers."""
    endpoint = ClientEndpoint(OwnClient(client, asyncio.get_running_loop()), server.url, settle_seconds=0.05)
    timings = replace(changes.pop("timings", TIMINGS), heartbeat=1.0)
    return wakeups(server, endpoint=endpoint, timings=timings, **changes)


@dataclass(frozen=True)
class Opened:
    """Makes wake-ups over one of the two connections."""

    server: PhoenixServer
    client: AsyncRealtimeClient | None

    @property
    def is_published(self) -> bool:
        return self.client is not None

    @property
    def tries(self) -> int:
        """How often the connection is tried before the runtime hears that there is none."""
        return 1 if self.client is None else self.client.max_retries

    def __call__(self, **changes: Any) -> RealtimeWakeups:
        if self.client is None:
            return wakeups(self.server, **changes)
        return over(self.client, self.server, **changes)


@pytest.fixture(params=["own", "published"])
async def opened(request: pytest.FixtureRequest, server: PhoenixServer) -> AsyncIterator[Opened]:
    """Wake-ups over a socket of the runtime's own, and over the published client's."""
    if request.param == "published" and not IS_RECENT:
        pytest.skip("the realtime package is older than 2.34")
    client = published(server) if request.param == "published" else None
    yield Opened(server, client)
    if client is not None:
        await client.close()


def told_of(recorder: Recorder, number: int) -> bool:
    """Whether a row was announced."""
    return ("wake", "postgres_changes", str(number)) in recorder.told


async def both_live(recorder: Recorder, times: int = 1) -> None:
    await recorder.until(lambda told: all(told.count("live", path) >= times for path in BOTH))


# The twelve injections under which the published client falls silent, or does not: over a socket of the runtime's own,
# and over that client


async def test_t1_a_listener_that_raises_on_a_row_hears_the_next_ones(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        recorder.fails_on = {"wake"}
        for number in range(1, 5):
            await server.insert(number)
        await recorder.until(lambda told: told.count("wake", "postgres_changes") == 4)
        assert server.connects == 1


async def test_t2_what_a_listener_returns_is_never_left_to_be_awaited(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    # Handlers, async or plain, run elsewhere; the socket's side only ever takes a hint and returns.
    async with listening(opened().run, recorder):
        await both_live(recorder)
        await server.insert(7)
        await recorder.until(lambda told: ("wake", "postgres_changes", "7") in told.told)


async def test_t3_a_server_that_is_away_for_long_is_found_again(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        await server.stop()
        await recorder.until(lambda told: told.count("lost") >= 2)
        # Far more tries than the published client makes in all.
        await anyio.sleep(1.0)
        await server.start()
        await both_live(recorder, 2)


async def test_t4_heartbeats_never_answered_end_the_socket(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        server.answers_heartbeats = False
        # The published client does not mind; nonces that come back prove the paths all the same, until they do not.
        recorder.echoes = not opened.is_published
        await recorder.until(lambda told: told.count("lost") >= 2)
        server.answers_heartbeats = recorder.echoes = True
        await both_live(recorder, 2)


async def test_t5_a_socket_cut_without_a_word_is_replaced(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        server.abort()
        await both_live(recorder, 2)


async def test_t6_a_join_answered_is_not_yet_live(server: Any, recorder: Recorder, opened: Opened) -> None:
    server.subscribes = False
    async with listening(opened().run, recorder):
        await recorder.until(lambda told: told.count("live", "broadcast") == 1)
        assert recorder.count("live", "postgres_changes") == 0
        await server.system("Subscribed to PostgreSQL")
        await recorder.until(lambda told: told.count("live", "postgres_changes") == 1)


async def test_t7_a_truncated_row_and_a_frame_without_sense_are_hints_at_most(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        await server.insert(1, errors=["Error 413: Payload Too Large"], record={})
        await recorder.until(lambda told: told.count("gap") == 1 and told.count("wake") == 1)
        for nonsense in ({"data": 7}, {"data": {"record": []}}, {}):
            await server.say("postgres_changes", nonsense)
        await server.connections[0].send("{no json")
        await server.connections[0].send(b"\x04\xff\xff")
        await server.insert(2)
        await recorder.until(lambda told: ("wake", "postgres_changes", "2") in told.told)
        assert server.connects == 1


async def test_t8_a_slow_listener_is_still_heard_from_by_the_server(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        before = server.heartbeats
        for number in range(200):
            await server.insert(number)
        await recorder.until(lambda told: told.count("wake", "postgres_changes") >= 200)
        with anyio.fail_after(60):
            # The published client sends one in 15 seconds at most.
            while server.heartbeats < before + 2 and not opened.is_published:
                await anyio.sleep(0.01)
        assert server.connects == 1


async def test_t9_a_change_without_our_ids_is_a_hint_all_the_same(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        await server.say(
            "postgres_changes", {"ids": [], "data": {"table": "consciousness_stream", "record": {"id": 5}}}
        )
        await server.insert(6)
        await recorder.until(lambda told: ("wake", "postgres_changes", "6") in told.told)
        # The published client drops it: a sweep finds the row.
        assert told_of(recorder, 5) == (not opened.is_published)


async def test_t10_a_system_error_leads_to_a_fresh_socket(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        await server.system('{:error, "Too many database timeouts"}', "error")
        await recorder.until(lambda told: told.count("lost", "postgres_changes") >= 1)
        await both_live(recorder, 2)


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012])
async def test_t11_a_close_of_any_code_is_followed_by_a_fresh_socket(
    server: Any, recorder: Recorder, opened: Opened, code: int
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        await server.connections[0].close(code)
        await both_live(recorder, 2)


async def test_t12_a_listener_that_raises_on_a_change_of_state_goes_on_listening(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    recorder.fails_on = {"live", "lost"}
    async with listening(opened().run, recorder):
        await both_live(recorder)
        await server.insert(3)
        await recorder.until(lambda told: ("wake", "postgres_changes", "3") in told.told)


# What only happens on a socket that is the user's too


@pytest.mark.skipif(not IS_RECENT, reason="the realtime package is older than 2.34")
async def test_a_callback_of_the_user_that_raises_ends_the_reading_and_the_nonces_mend_it(
    server: Any, recorder: Recorder
) -> None:
    client = published(server)
    heard: list[Any] = []

    def raise_once(payload: Any) -> None:
        heard.append(payload)
        if len(heard) == 1:
            raise RuntimeError("a mistake of the user's")

    own = client.channel("room")
    own.on_broadcast("hello", raise_once)
    await own.subscribe()
    async with listening(over(client, server).run, recorder):
        await both_live(recorder)
        for connection in server.connections:
            frame = {"topic": "realtime:room", "event": "broadcast", "ref": None}
            await connection.send(json.dumps(frame | {"payload": {"event": "hello", "payload": {}}}))
        await recorder.until(lambda told: told.count("lost") >= 2)
        # The package reads no more and does not know it: the connection is cut, and every channel joined anew.
        await both_live(recorder, 2)
        assert own.is_joined
        assert server.connects == 2
    await client.close()


@pytest.mark.skipif(not IS_RECENT, reason="the realtime package is older than 2.34")
async def test_the_user_s_connection_stays_and_the_channel_is_left(server: Any, recorder: Recorder) -> None:
    client = published(server)
    own = client.channel("room")
    await own.subscribe()
    async with listening(over(client, server).run, recorder):
        await both_live(recorder)
    assert (server.connects, list(client.channels)) == (1, ["realtime:room"])
    await client.close()


# What else an ordinary day brings; what concerns keys, tokens and redirects, over the runtime's own socket alone


async def test_a_server_that_accepts_and_hangs_up_is_not_asked_in_a_tight_loop(
    server: Any, recorder: Recorder
) -> None:
    server.hangs_up_at_once = True
    slow = replace(PAUSES, first=0.2, cap=10.0)
    # Not over the published client, which connects again by itself, at once, until its last channel is left.
    async with listening(wakeups(server, pauses=slow).run, recorder):
        await anyio.sleep(2.0)
    # Doubling waits with full jitter: far from the hundreds that no wait would give.
    assert 1 < server.connects <= 14


async def test_too_many_requests_on_the_upgrade_waits_longer(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    server.refuses_upgrade_with = (429, b'{"error":"Too many joins per second"}')
    began = time.monotonic()
    async with listening(opened().run, recorder):
        with anyio.fail_after(60):
            while server.connects < opened.tries + 1:
                await anyio.sleep(0.005)
        assert time.monotonic() - began >= PAUSES.rate
        server.refuses_upgrade_with = None
        await both_live(recorder)


async def test_a_refused_key_is_said_once_and_asked_about_again(
    server: Any, recorder: Recorder, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuses_upgrade_with = (401, b'{"error":"Failed to validate JWT signature"}')
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.WARNING, "websockets.server"):
        async with listening(opened().run, recorder):
            with anyio.fail_after(60):
                while server.connects < 3:
                    await anyio.sleep(0.005)
            server.refuses_upgrade_with = None
            await both_live(recorder)
    said = [
        record.getMessage() for record in caplog.records if "Failed to validate JWT" in record.getMessage()
    ]
    assert len(said) == 1
    assert KEY not in caplog.text


async def test_a_peer_that_answers_tcp_and_nothing_else_is_given_up(recorder: Recorder) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        connects = 0

        async def hold(stream: Any) -> None:
            nonlocal connects
            connects += 1
            await anyio.sleep_forever()

        silent = PhoenixServer(port=listener.extra(anyio.abc.SocketAttribute.local_port))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, hold)
            async with listening(wakeups(silent).run, recorder):
                with anyio.fail_after(60):
                    while connects < 2:
                        await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()


async def test_a_peer_that_never_answers_the_join_is_given_up(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    server.answers_joins = False
    async with listening(opened().run, recorder):
        with anyio.fail_after(60):
            while server.connects < 2:
                await anyio.sleep(0.005)
        server.answers_joins = True
        await both_live(recorder)


async def test_a_path_gone_deaf_is_found_out_by_its_nonce(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        recorder.echoes = False
        await recorder.until(lambda told: told.count("lost") >= 2)
        assert server.heartbeats > 0
        recorder.echoes = True
        await both_live(recorder, 2)


async def test_doubt_asks_for_a_nonce_at_once(server: Any, recorder: Recorder, opened: Opened) -> None:
    source = opened(timings=replace(TIMINGS, nonce=60, heartbeat=20))
    async with listening(source.run, recorder):
        await both_live(recorder)
        await recorder.until(lambda told: not told.nonces)
        recorder.echoes = False

        def doubted(told: Recorder) -> bool:
            # A doubt while the first nonce is still on one of its ways asks for no second one.
            source.doubt()
            return len(told.nonces) == 1

        await recorder.until(doubted)


async def test_a_second_subscribed_is_a_gap(server: Any, recorder: Recorder, opened: Opened) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        await server.system("Subscribed to PostgreSQL")
        await recorder.until(lambda told: told.count("gap", "postgres_changes") == 1)
        assert server.connects == 1


async def test_one_path_that_never_works_leaves_the_other_alone(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    server.subscribes = False
    timings = replace(TIMINGS, mend=60)
    async with listening(opened(timings=timings).run, recorder):
        await recorder.until(lambda told: told.count("lost", "postgres_changes") >= 1)
        assert recorder.count("live", "broadcast") == 1
        assert recorder.count("lost", "broadcast") == 0
        assert server.connects == 1


async def test_a_token_is_renewed_before_it_expires_and_before_a_rejoin(
    server: Any, recorder: Recorder
) -> None:
    given: list[str] = []

    def provide() -> str:
        claims = {"role": "service_role", "exp": int(time.time()) + 2, "n": len(given)}
        given.append(jwt.encode(claims, "x" * 32))
        return given[-1]

    async with listening(wakeups(server, token=provide).run, recorder):
        await both_live(recorder)
        with anyio.fail_after(60):
            while len(server.tokens) < 1:
                await anyio.sleep(0.01)
        assert server.joins[0]["access_token"] == given[0]
        assert server.tokens[0] == given[1]
        count = len(given)
        server.abort()
        await both_live(recorder, 2)
        assert server.joins[1]["access_token"] in given[count:]


async def test_an_expired_token_ends_the_channel_and_a_fresh_one_begins(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        await server.system("Token has expired 0 seconds ago", "error", "system")
        await server.say("phx_close", {}, join_ref="1")
        await both_live(recorder, 2)


async def test_an_sb_secret_key_opens_the_socket_and_is_no_token(server: Any, recorder: Recorder) -> None:
    async with listening(wakeups(server, key="sb_secret_abc").run, recorder):
        await both_live(recorder)
    assert "access_token" not in server.joins[0]


async def test_cancelling_with_a_dead_peer_ends_at_once(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened().run, recorder):
        await both_live(recorder)
        server.answers_heartbeats = False
        # Long before any answer could be missed.
        connects = server.connects
    assert server.connects == connects


async def test_the_join_asks_for_our_keys_and_our_nonces_only(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    async with listening(opened(keys=["b.c", "a.b"]).run, recorder):
        await both_live(recorder)
    config = server.joins[0]["config"]
    stream, beats = config["postgres_changes"]
    assert config["private"] is True
    assert (stream["filter"], stream["select"]) == ("key=in.(a.b,b.c)", ["id", "key"])
    assert (beats["schema"], beats["table"]) == ("runtime", "beats")
    assert beats["filter"].startswith("worker=eq.")


async def test_a_redirect_is_a_refusal_and_not_followed(server: Any, recorder: Recorder) -> None:
    elsewhere = PhoenixServer()
    await elsewhere.start()
    server.refuses_upgrade_with = (302, b"")
    server.redirects_to = elsewhere.url.replace("http", "ws") + "/realtime/v1/websocket"
    async with listening(wakeups(server).run, recorder):
        with anyio.fail_after(60):
            while server.connects < 3:
                await anyio.sleep(0.005)
        assert elsewhere.connects == 0
        server.refuses_upgrade_with = None
        await both_live(recorder)
    await elsewhere.stop()


async def test_a_deliberate_end_is_quiet_and_loses_nothing(
    server: Any, recorder: Recorder, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "runtime"):
        async with listening(opened().run, recorder):
            await both_live(recorder)
            caplog.clear()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("runtime")] == []
    assert recorder.count("lost") == 0


async def test_every_change_of_state_is_logged_once_with_cause_and_next_step(
    server: Any, recorder: Recorder, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "runtime.wakeups"):
        async with listening(opened().run, recorder):
            await both_live(recorder)
            await server.connections[0].close(1012)
            await both_live(recorder, 2)
            server.refuses_join_with = "PrivateOnly: This project only allows private channels"
            server.abort()
            with anyio.fail_after(60):
                while len(server.joins) < 4:
                    await anyio.sleep(0.005)
    said = [record.getMessage() for record in caplog.records if record.name == "runtime.wakeups"]
    places = [text.partition(" at ")[0] for text in said]
    assert sorted(places[:2]) == sorted(places[3:5]) == ["broadcast is live", "postgres_changes is live"]
    assert "closed with code 1012; connecting again in" in said[2]
    assert "closed with code 1006; connecting again in" in said[5]
    assert "PrivateOnly" in said[6]
    assert "It needs mending" in said[6]
    assert len(said) == 7


async def test_a_provider_that_fails_later_costs_neither_the_socket_nor_the_token(
    server: Any, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    def provide() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise RuntimeError("the vault is closed")
        return jwt.encode({"role": "service_role", "exp": int(time.time()) + 2, "n": asked}, "x" * 32)

    async with listening(wakeups(server, token=provide).run, recorder):
        await both_live(recorder)
        with anyio.fail_after(60):
            while not server.tokens:
                await anyio.sleep(0.01)
        assert server.connects == 1
    assert "the vault is closed" not in caplog.text
    assert "the token is kept" in caplog.text


@pytest.mark.parametrize(
    ("reason", "pause"),
    [
        ("ClientJoinRateLimitReached: Too many joins per second", "rate"),
        ("PrivateOnly: This project only allows private channels", "operator"),
    ],
)
async def test_a_refused_join_waits_by_its_class(
    server: Any, recorder: Recorder, opened: Opened, reason: str, pause: str
) -> None:
    server.refuses_join_with = reason
    pauses = replace(PAUSES, **{pause: 1.0})
    async with listening(opened(pauses=pauses).run, recorder):
        with anyio.fail_after(60):
            while len(server.joins) < 2:
                await anyio.sleep(0.005)
    assert server.joined_at[1] - server.joined_at[0] >= 1.0


async def test_t4_a_missing_path_is_tried_anew_soon_and_then_ever_more_rarely(
    server: Any, recorder: Recorder, opened: Opened
) -> None:
    server.subscribes = False
    source = opened(timings=replace(TIMINGS, subscribe=0.1, first_mend=0.05, mend=0.3))
    pauses = [source.mend_seconds]
    async with listening(source.run, recorder):
        while len(pauses) < 4:
            await recorder.until(lambda told: server.connects > len(pauses))
            pauses.append(source.mend_seconds)
        server.subscribes = True
        await recorder.until(
            lambda told: (
                told.count("live", "postgres_changes") == 1
                and told.count("live", "broadcast") == server.connects
            )
        )
        server.abort()
        await recorder.until(lambda told: told.count("live", "postgres_changes") == 2)
    assert pauses == [0.05, 0.1, 0.2, 0.3]
    assert source.mend_seconds == 0.05


@pytest.mark.parametrize("causes", [(500, 503), (500, 502, 504)])
async def test_t5_causes_that_take_turns_are_one_outage_and_told_once(
    server: Any, recorder: Recorder, caplog: pytest.LogCaptureFixture, causes: tuple[int, ...], opened: Opened
) -> None:
    with caplog.at_level(logging.WARNING, "runtime.wakeups"):
        async with listening(opened().run, recorder):
            for turn in range(1, 3 * len(causes)):
                server.refuses_upgrade_with = (causes[turn % len(causes)], b"")
                await recorder.until(lambda told: server.connects >= turn)  # noqa: B023 - awaited within the turn
            server.refuses_upgrade_with = None
            await both_live(recorder)
    assert len([record for record in caplog.records if record.name == "runtime.wakeups"]) == 1


async def test_t5_the_loss_of_both_paths_is_told_by_whoever_listens_and_not_a_second_time(
    server: Any, recorder: Recorder, caplog: pytest.LogCaptureFixture, opened: Opened
) -> None:
    with caplog.at_level(logging.WARNING, "runtime.wakeups"):
        async with listening(opened().run, recorder):
            await both_live(recorder)
            recorder.echoes = False
            await recorder.until(lambda told: told.count("lost") >= 2)
            recorder.echoes = True
            await both_live(recorder, 2)
    assert [record.getMessage() for record in caplog.records if record.name == "runtime.wakeups"] == []
