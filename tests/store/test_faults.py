"""What does a store do when the network, a proxy or the server fails it? Over real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from runtime.errors import Blocked, MigrationMissing, Refused, StoreUnavailable, Unauthorized
from runtime.local import keys
from runtime.message import Draft
from runtime.store import Store
from runtime.store.supabase import SupabaseStore
from supabase import AsyncClientOptions, create_async_client
from tests.faulty_proxy import FaultyProxy, canned_server, faulty_proxy, http_answer
from tests.store.conftest import Way

pytestmark = pytest.mark.anyio

PAGE = "<html><body><h1>502 Bad Gateway</h1></body></html>"


@asynccontextmanager
async def behind_proxy(way: Way, key: str, seconds: float = 10) -> AsyncIterator[tuple[Store, FaultyProxy]]:
    """A store whose every byte goes through a proxy; its connection is made already."""
    async with faulty_proxy(way.port) as proxy, way.open(port=proxy.port, seconds=seconds) as store:
        await store.send([Draft(f"{key}.first", 0)])
        yield store, proxy


async def stored(way: Way, key: str) -> list[object]:
    """What is in the table, asked directly."""
    async with way.server.admin() as admin:
        rows = await admin.fetch(
            "select value::text from consciousness_stream where key = $1 order by id", key
        )
    return [row["value"] for row in rows]


# Over the transaction pooler the first answer is that to BEGIN: nothing was asked yet, but the store cannot know.
COMMITTING = ["direct", "session-pooler", "rest", "own-client"]


@pytest.mark.parametrize("way", COMMITTING, indirect=True)
async def test_a_send_whose_answer_is_lost_is_not_repeated(way: Way, key: str) -> None:
    async with behind_proxy(way, key) as (store, proxy):
        proxy.lose_answers = 1
        with pytest.raises(StoreUnavailable, match="not known") as lost:
            await store.send([Draft(key, 1)])
        assert lost.value.maybe_applied
        assert await stored(way, key) == ["1"]
        # The next one finds a connection of its own.
        await store.send([Draft(key, 2)])
    assert await stored(way, key) == ["1", "2"]


async def test_g10_a_send_with_dedup_keys_is_repeated_and_stored_once(way: Way, key: str) -> None:
    async with behind_proxy(way, key) as (store, proxy):
        proxy.lose_answers = 2
        (sent,) = await store.send([Draft(key, 1, dedup_key=key)])
        assert proxy.lose_answers == 0
        (message,) = await store.read(key)
        assert message.id == sent.id
    assert await stored(way, key) == ["1"]


async def test_a_read_is_repeated(way: Way, key: str) -> None:
    async with behind_proxy(way, key) as (store, proxy):
        await store.send([Draft(key, 1)])
        proxy.lose_answers = 2
        (message,) = await store.read(key)
        assert message.value == 1
        assert proxy.lose_answers == 0


async def test_an_idle_connection_that_was_closed_costs_nothing(way: Way, key: str) -> None:
    async with behind_proxy(way, key) as (store, proxy):
        for number in range(3):
            await proxy.cut()
            await anyio.sleep(0.05)
            await store.send([Draft(key, number)])
    assert await stored(way, key) == ["0", "1", "2"]


async def test_a_store_that_is_away_was_not_reached_and_is_tried_again(way: Way, key: str) -> None:
    async with faulty_proxy(way.port) as proxy, way.open(port=proxy.port) as store:
        # By their number, not for a time: the pauses between the store's tries are drawn by chance.
        proxy.refuse_connections = 2
        await store.send([Draft(key, 1, dedup_key=key)])
        assert proxy.refuse_connections == 0
    assert await stored(way, key) == ["1"]


async def test_nobody_listens(way: Way, key: str) -> None:
    async with faulty_proxy(way.port) as proxy:
        port = proxy.port
    async with way.open(port=port) as store:
        with pytest.raises(
            StoreUnavailable, match=r"could not be reached.*(SUPABASE_URL|DATABASE_URL)"
        ) as away:
            await store.call("stream_stats", {})
        assert not away.value.maybe_applied
        assert f"127.0.0.1:{port}" in str(away.value)


async def test_a_frozen_server_is_given_up_in_time_and_left_without_a_trace(way: Way, key: str) -> None:
    async with behind_proxy(way, key, seconds=0.5) as (store, proxy):
        proxy.frozen = True
        with anyio.fail_after(60), pytest.raises(StoreUnavailable) as frozen:
            await store.send([Draft(key, 1)])
        assert frozen.value.maybe_applied
        proxy.frozen = False
        await store.send([Draft(key, 2, dedup_key=key)])
        with anyio.fail_after(60):
            while proxy.open_connections > 4:
                await anyio.sleep(0.01)
    assert await stored(way, key) in (["1", "2"], ["2"])


async def test_a_slow_server_is_waited_for(way: Way, key: str) -> None:
    async with behind_proxy(way, key) as (store, proxy):
        proxy.delay = 0.2
        await store.send([Draft(key, 1)])
    assert await stored(way, key) == ["1"]


async def test_closing_under_cancellation_ends_and_leaves_no_connection(way: Way, key: str) -> None:
    async with faulty_proxy(way.port) as proxy:
        store = await way.connect(port=proxy.port)
        await store.send([Draft(key, 0)])
        proxy.frozen = True
        with anyio.fail_after(60):
            with anyio.move_on_after(0.1):
                try:
                    await store.read(key)
                finally:
                    with anyio.CancelScope(shield=True):
                        await store.close()
            if way.name != "own-client":
                while proxy.open_connections:
                    await anyio.sleep(0.01)


@asynccontextmanager
async def canned(way: Way, *answers: bytes) -> AsyncIterator[tuple[Store, list[bytes]]]:
    """A REST store and the server that answers it."""
    async with canned_server(*answers) as server, way.open(port=server.port) as store:
        yield store, server.requests


REST = pytest.mark.parametrize("way", ["rest", "own-client"], indirect=True)


@REST
@pytest.mark.parametrize(
    ("answer", "maybe_applied", "words"),
    [
        (http_answer(429, "slow down", kind="text/plain"), False, "too many requests"),
        (http_answer(500, PAGE, kind="text/html"), True, "answered 500"),
        (http_answer(502, PAGE, kind="text/html"), True, "answered 502"),
        (http_answer(503, PAGE, kind="text/html"), True, "answered 503"),
        (http_answer(504, PAGE, kind="text/html"), True, "answered 504"),
        (http_answer(408, "", kind="text/html"), True, "answered 408"),
        (http_answer(540, '{"message":"Project paused"}'), False, "resume the project"),
        (
            http_answer(503, '{"code":"PGRST002","message":"Retrying"}'),
            False,
            "no connection to its database",
        ),
        (http_answer(503, '{"code":"PGRST001","message":"Retrying"}'), True, "no connection to its database"),
        (
            http_answer(504, '{"code":"PGRST003","message":"Timed out"}'),
            False,
            "no connection to its database",
        ),
        (http_answer(404, PAGE, kind="text/html"), False, "SUPABASE_URL"),
        (http_answer(404, '{"message":"no Route matched with those values"}'), False, "no Route matched"),
        (http_answer(301, headers="Location: https://example.com/\r\n"), False, "points elsewhere"),
        (http_answer(200, "<html>a dashboard</html>", kind="text/html"), True, "no JSON"),
        (http_answer(200, '[{"id": 1, '), True, "no JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[", True, "did not answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", True, "did not answer"),
    ],
)
async def test_what_stands_in_front_of_the_api_may_say_anything(
    way: Way, answer: bytes, maybe_applied: bool, words: str
) -> None:
    async with canned(way, answer) as (store, requests):
        with pytest.raises(StoreUnavailable, match=words) as error:
            await store.call("stream_send", {"messages": "[]"})
        assert len(requests) == 1
    assert error.value.maybe_applied is maybe_applied
    assert "<" not in str(error.value)


@REST
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (http_answer(401, '{"message":"Invalid API key","hint":"Check it."}'), Unauthorized, "key. Check it"),
        (http_answer(401, '{"code":"PGRST303","message":"JWT expired"}'), Unauthorized, "JWT expired"),
        (http_answer(403, PAGE, kind="text/html"), Blocked, "a web application firewall in front of it"),
        (http_answer(403, '{"message":"Forbidden"}'), Blocked, "a web application firewall in front of it"),
        (http_answer(403, '{"message":"You cannot consume this service"}'), Unauthorized, "refused the key"),
        (http_answer(413, PAGE, kind="text/html"), Blocked, "a body as large"),
        (http_answer(431, "", kind="text/plain"), Blocked, "a head as large"),
        (http_answer(404, '{"code":"PGRST202","message":"Could not find"}'), MigrationMissing, "db push"),
        (http_answer(300, '{"code":"PGRST203","message":"Could not choose"}'), MigrationMissing, "db push"),
        (http_answer(406, '{"code":"PGRST106","message":"Invalid schema"}'), MigrationMissing, "expose"),
        (http_answer(400, '{"code":"PGRST102","message":"Empty or invalid json"}'), Refused, "invalid json"),
    ],
)  # fmt: skip
async def test_what_cannot_be_mended_by_trying_is_tried_once(
    way: Way, answer: bytes, kind: type[Exception], words: str
) -> None:
    async with canned(way, answer) as (store, requests):
        with pytest.raises(kind, match=words):
            await store.read("a.b")
        assert len(requests) == 1


@REST
async def test_what_may_be_retried_is_and_what_may_not_is_not(way: Way) -> None:
    sent = http_answer(200, '[{"id": 7, "duplicate": false}]')
    refusals = [http_answer(429), http_answer(503, '{"code":"PGRST002","message":"m"}'), http_answer(540)]
    async with canned(way, *refusals, sent) as (store, requests):
        assert (await store.send([Draft("a.b", 1)]))[0].id == 7
        assert len(requests) == 4
    doubtful = http_answer(502, PAGE, kind="text/html")
    async with canned(way, doubtful, sent) as (store, requests):
        with pytest.raises(StoreUnavailable):
            await store.send([Draft("a.b", 1)])
        assert len(requests) == 1
    async with canned(way, doubtful, sent) as (store, requests):
        assert (await store.send([Draft("a.b", 1, dedup_key="d")]))[0].id == 7
        assert len(requests) == 2
    async with canned(way, doubtful, sent) as (store, requests):
        with pytest.raises(StoreUnavailable):
            await store.send([Draft("a.b", 1, dedup_key="d"), Draft("a.b", 2)])
        assert len(requests) == 1
    async with canned(way, doubtful) as (store, requests):
        with pytest.raises(StoreUnavailable):
            await store.read("a.b")
        assert len(requests) == 5


@REST
async def test_the_key_goes_to_no_other_host(way: Way) -> None:
    async with canned_server(http_answer(200, "[]")) as other:
        answer = http_answer(307, headers=f"Location: {other.url}/rest/v1/rpc/stream_read\r\n")
        async with canned(way, answer) as (store, _):
            with pytest.raises(StoreUnavailable):
                await store.call("stream_read", {"pattern": "a"})
        assert other.requests == []


async def test_a_server_that_answers_drop_by_drop_is_given_up_in_time() -> None:
    async def drip(client: anyio.abc.SocketStream) -> None:
        async with client:
            await client.receive()
            await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while True:
                await client.send(b" ")
                await anyio.sleep(0.05)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, drip)
        store = await SupabaseStore.connect(f"http://127.0.0.1:{port}", "a.b.c", request_seconds=0.5)
        with anyio.fail_after(60), pytest.raises(StoreUnavailable, match="did not answer"):
            await store.call("stream_stats", {})
        await store.close()
        tasks.cancel_scope.cancel()


async def test_a_key_that_no_header_can_bear_is_told_without_repeating_it() -> None:
    for key in ("secret-key\nwith a line", "sb_secret_…"):
        client = await create_async_client("http://127.0.0.1:9", "placeholder")
        client.options.headers.update({"apiKey": key, "Authorization": f"Bearer {key}"})
        store = SupabaseStore(client)
        with pytest.raises((Unauthorized, StoreUnavailable)) as error:
            await store.call("stream_stats", {})
        assert "secret" not in repr(error.value).replace("sb_secret_… key", "").replace("SECRET", "")


@pytest.mark.parametrize("way", ["own-client"], indirect=True)
async def test_a_client_that_was_closed_before_the_stream_is_told(way: Way) -> None:
    client = await create_async_client(f"http://127.0.0.1:{way.port}", keys.SERVICE_ROLE_KEY)
    store = SupabaseStore(client)
    await store.call("stream_stats", {})
    await client.postgrest.session.aclose()
    with pytest.raises(StoreUnavailable, match="close it after the stream"):
        await store.call("stream_stats", {})


@pytest.mark.parametrize("way", ["own-client"], indirect=True)
async def test_a_client_that_is_set_to_another_schema_reaches_the_stream_all_the_same(
    way: Way, key: str
) -> None:
    options = AsyncClientOptions(schema="graphql_public")
    client = await create_async_client(f"http://127.0.0.1:{way.port}", keys.SERVICE_ROLE_KEY, options)
    store = SupabaseStore(client)
    await store.send([Draft(key, 1)])
    await client.postgrest.session.aclose()
    assert await stored(way, key) == ["1"]
    async with canned_server(http_answer(200, "[]")) as server:
        client = await create_async_client(server.url, keys.SERVICE_ROLE_KEY, options)
        await SupabaseStore(client).read("a.b")
        head = server.requests[0].partition(b"\r\n\r\n")[0].lower()
        assert head.count(b"content-profile: ") == 1
        assert b"content-profile: public" in head
