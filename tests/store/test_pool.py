"""The life of direct connections: which are dropped, how long they rest, and how often a wrong password is tried."""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio
import pytest

from runtime.connection import database
from runtime.connection.addresses import DatabaseAddress
from runtime.errors import StoreError, StoreUnavailable, Unauthorized
from runtime.message import Draft
from runtime.store import Exchange, Store
from runtime.store import pool as pools
from runtime.store.postgres import PostgresStore
from runtime.wakeups.listen import is_unheard
from tests.faulty_proxy import faulty_proxy
from tests.store.conftest import Server, Way

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(server: Server, *, port: int = 0, **options: Any) -> AsyncIterator[PostgresStore]:
    """A store with one direct connection."""
    url = f"postgresql://postgres:postgres@127.0.0.1:{port or server.cluster.server.port}/{server.database}"
    store = PostgresStore(url, connections=1, **options)
    try:
        yield store
    finally:
        await store.close()


def connection_of(store: PostgresStore) -> Any:
    """The connection that rests in a store, or None."""
    assert store._pool is not None
    idle = store._pool._idle
    return idle[-1].connection if idle else None


@pytest.mark.parametrize(
    ("code", "is_kept"),
    [
        ("25006", False), ("57P01", False), ("57P02", False), ("57P03", False), ("25P03", False), ("08006", False),
        ("22003", True), ("55P03", True), ("42501", True), ("53200", True),
    ],
)  # fmt: skip
async def test_l5_a_connection_to_a_server_that_changed_or_ends_is_dropped(
    server: Server, code: str, is_kept: bool
) -> None:
    async with (
        server.replaced("stream_pause", f"raise exception using errcode = '{code}';"),
        opened(server) as store,
    ):
        await store.operate("stream_stats")
        before = connection_of(store)
        with pytest.raises(StoreError):
            await store.call("stream_pause", {"subscription": "a"})
        assert (connection_of(store) is before) is is_kept
        await store.operate("stream_stats")


async def test_l5_a_connection_that_was_forgotten_on_the_way_costs_no_request(
    server: Server, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_CHECK_AFTER_SECONDS", 0.0)
    async with (
        faulty_proxy(server.cluster.server.port) as proxy,
        opened(server, port=proxy.port, request_seconds=300) as store,
    ):
        await store.send([Draft(key, 1)])
        proxy.forget()
        with anyio.fail_after(60):
            # It is not repeated where its answer is lost: so it went out once, over another connection.
            await store.send([Draft(key, 2)])
            assert [message.value for message in await store.read(key)] == [1, 2]


@pytest.mark.parametrize("limit", ["_MAX_IDLE_SECONDS", "_MAX_AGE_SECONDS"])
async def test_l5_no_connection_rests_or_lives_for_ever(
    server: Server, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server) as store:
        await store.operate("stream_stats")
        first = connection_of(store)
        await store.operate("stream_stats")
        assert connection_of(store) is first
        monkeypatch.setattr(pools, limit, 0.0)
        monkeypatch.setattr(pools, "_CHECK_AFTER_SECONDS", 0.0)
        await store.operate("stream_stats")
        await store.operate("stream_stats")
        assert connection_of(store) is not first
        assert first.is_closed()


async def test_l5_what_is_needed_no_more_is_dropped_while_others_are_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.cluster.url(server.database)
    store = PostgresStore(url, connections=4)
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(store.operate, "stream_stats")
    assert store._pool is not None
    many = len(store._pool._idle)
    monkeypatch.setattr(pools, "_MAX_IDLE_SECONDS", 0.0)
    for _ in range(many):
        await store.operate("stream_stats")
    assert len(store._pool._idle) <= 1
    await store.close()


async def test_l5_the_system_asks_whether_the_other_end_is_there(server: Server) -> None:
    async with opened(server) as store:
        await store.operate("stream_stats")
        raw = connection_of(store)._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60


# Isolation


@pytest.fixture
def strict(way: Way) -> Iterator[str]:
    """The name of a database of the test's own."""
    database = way.server.cluster.make_database()
    yield database
    if gateway := way.server.gateways.pop(database, None):
        gateway.kill()
    way.server.cluster.drop_database(database)


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
async def test_l4_the_default_isolation_of_a_database_stops_no_direct_store(
    way: Way, strict: str, level: str
) -> None:
    async with way.server.admin() as admin:
        await admin.execute(f"alter database {strict} set default_transaction_isolation = '{level}'")
    async with way.open(database=strict) as store:
        exchange = Exchange(worker=uuid4(), pump=uuid4(), n=1)
        if not way.is_rest:
            assert (await store.exchange(exchange)).unknown
            return
        with pytest.raises(StoreUnavailable, match="alter role authenticator set") as refused:
            await store.exchange(exchange)
        assert refused.value.nature == "setup"


# Credentials


@pytest.fixture
def _no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of any password."""
    monkeypatch.setattr(database, "_states", {})


async def refused(store: Store) -> None:
    with pytest.raises(Unauthorized, match="refused the connection"):
        await store.call("stream_stats", {})


@pytest.mark.usefixtures("_no_states")
async def test_l8_a_password_that_was_refused_is_tried_by_one_place_and_rarely(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with faulty_proxy(server.cluster.server.port) as proxy:
        url = f"postgresql://nobody_here:wr0ng@127.0.0.1:{proxy.port}/{server.database}"
        stores = [PostgresStore(url) for _ in range(3)]
        await refused(stores[0])
        tried = proxy.connections
        for _ in range(20):
            for store in stores:
                await refused(store)
            with pytest.raises(database.FAULTS):
                # As the listeners of NOTIFY do.
                await is_unheard(DatabaseAddress.parse(url))
        assert proxy.connections == tried
        # When the pause is over one try is made, and the next pause is longer.
        state = database._states[DatabaseAddress.parse(url).url]
        before = state.shut_until
        state.shut_until = 0.0
        for store in stores:
            await refused(store)
        assert proxy.connections <= 2 * tried
        assert state.refused == 2
        assert state.shut_until > before
        for store in stores:
            await store.close()
    assert min(database._LONGEST_PAUSE_SECONDS, 60) == 60


@pytest.mark.usefixtures("_no_states")
async def test_l8_a_password_that_is_right_again_lets_everybody_in(server: Server) -> None:
    async with server.admin() as admin:
        await admin.execute("create role comes_later")
        url = server.cluster.url(server.database).replace("//postgres", "//comes_later")
        store = PostgresStore(url)
        try:
            await refused(store)
            await admin.execute(
                "alter role comes_later login password 'postgres'; grant service_role to comes_later"
            )
            await refused(store)
            state = database._states[DatabaseAddress.parse(url).url]
            state.shut_until = 0.0
            await store.operate("stream_stats")
            assert state.error is None
            assert state.refused == 0
        finally:
            await store.close()
            await admin.execute("drop role comes_later")
