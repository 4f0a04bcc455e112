"""What is there only over a direct connection: poolers, passwords, restarts of the server."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

from runtime.client.factories import compare_places
from runtime.connection.pooler import is_transaction_pooled
from runtime.errors import MigrationMissing, SettingsError, StoreUnavailable, Unauthorized
from runtime.local import keys
from runtime.local.ports import free_port
from runtime.local.postgres import PostgresServer
from runtime.message import Draft
from runtime.settings import Settings
from runtime.store.postgres import PostgresStore
from tests.pgbouncer import Pooler
from tests.store.conftest import Server

pytestmark = pytest.mark.anyio


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the store logged."""
    return [record.getMessage() for record in caplog.records if record.name == "runtime.store"]


async def test_a_transaction_pooler_is_found_out_and_said_once(
    server: Server, transaction_pooler: Pooler, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.store")
    store = PostgresStore(transaction_pooler.url(server.database))
    await store.send([Draft(key, 0)])
    (line,) = said(caplog)
    # More clients than the pooler has connections, so that they change places all the time.
    others = [PostgresStore(transaction_pooler.url(server.database)) for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for number in range(60):
            for each in others:
                tasks.start_soon(each.send, [Draft(key, number)])
                tasks.start_soon(each.read, f"{key}.{number}")
                tasks.start_soon(each.operate, "stream_stats")
    assert len(await store.read(key, limit=1000)) == 241
    for each in (store, *others):
        await each.close()
    assert len(said(caplog)) == 5
    assert "is a transaction pooler (two connections met in one server process)" in line
    assert "postgres:" not in line
    async with server.admin() as admin:
        # The pooler's connections are still there, and hold no statement of ours.
        assert await admin.fetchval(
            "select count(*) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()",
            server.database,
        )
    connection = await asyncpg.connect(transaction_pooler.url(server.database), statement_cache_size=0)
    async with connection.transaction():
        assert await connection.fetchval("select count(*) from pg_prepared_statements where name <> ''") == 0
    await connection.close()


async def test_a_url_that_names_a_pooler_is_believed(
    server: Server, transaction_pooler: Pooler, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.store")
    store = PostgresStore(transaction_pooler.url(server.database) + "?pgbouncer=true&application_name=mine")
    await store.send([Draft(key, 1)])
    await store.close()
    assert len(said(caplog)) == 1
    assert "the URL says so" in said(caplog)[0]
    assert PostgresStore("postgresql://u:p@a.pooler.supabase.com:6543/postgres")._prepares is False


async def test_a_session_pooler_and_none_are_not_taken_for_one(
    server: Server, session_pooler: Pooler, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.store")
    for url in (session_pooler.url(server.database), server.cluster.url(server.database)):
        assert not await is_transaction_pooled(url, connect_seconds=5)
        store = PostgresStore(url)
        await store.send([Draft(key, 1)])
        await store.close()
    assert said(caplog) == []


async def test_a_pooler_that_hid_is_found_out_by_a_lost_statement(
    server: Server,
    transaction_pooler: Pooler,
    key: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "runtime.store")

    async def hidden(url: str, *, connect_seconds: float) -> bool:
        return False

    monkeypatch.setattr("runtime.store.postgres.is_transaction_pooled", hidden)
    store = PostgresStore(transaction_pooler.url(server.database))
    await store.read(key)
    async with server.admin() as admin:
        # As a pooler does that hands out another connection: the statement is known here, and not there.
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()",
            server.database,
        )
    # On the one connection the store has by now.
    assert await store.read(key) == []
    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(store.send, [Draft(key, number, dedup_key=f"{key}-{number}")])
    assert sorted(message.value for message in await store.read(key)) == list(range(10))
    await store.close()
    assert len(said(caplog)) == 1
    assert "it lost a prepared statement" in said(caplog)[0]


@pytest.fixture(scope="module")
def locked() -> Iterator[PostgresServer]:
    """A server that asks for a password."""
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-test-"))
    folder.chmod(0o755)
    server = PostgresServer(folder / "postgres", port=free_port(), settings={"fsync": "off"})
    try:
        server.start()
        yield server
    finally:
        server.delete()
        shutil.rmtree(folder, ignore_errors=True)


async def test_a_wrong_password_or_user_is_unauthorized_at_once(locked: PostgresServer) -> None:
    for user, password in (("supabase_admin", "wr0ng"), ("nobody_here", "postgres")):
        store = PostgresStore(f"postgresql://{user}:{password}@127.0.0.1:{locked.port}/postgres")
        with anyio.fail_after(60), pytest.raises(Unauthorized, match="DATABASE_URL") as refused:
            await store.send([Draft("a.b", 1)])
        await store.close()
        assert refused.value.code in ("28P01", "28000")
        assert "wr0ng" not in str(refused.value)


async def test_a_restart_of_the_server_costs_a_retry(locked: PostgresServer) -> None:
    """Also for the connections that were idle meanwhile; MigrationMissing is as good an answer as any."""
    store = PostgresStore(locked.url())
    await _answers(store)
    await anyio.to_thread.run_sync(locked.stop)
    with pytest.raises(StoreUnavailable, match="could not be reached"):
        await store.call("stream_stats", {})
    await anyio.to_thread.run_sync(locked.start)
    await _answers(store)
    await store.close()


async def _answers(store: PostgresStore) -> None:
    with pytest.raises(MigrationMissing):
        await store.call("stream_stats", {})


async def test_a_role_without_rights_is_unauthorized(server: Server, key: str) -> None:
    store = PostgresStore(server.cluster.url(server.database, user="authenticator"))
    with pytest.raises(Unauthorized, match=r"permission denied.*role postgres or service_role"):
        await store.send([Draft(key, 1)])
    await store.close()


@pytest.mark.parametrize(
    "url", ["mysql://u:s3cret@h/d", "postgresql://u:pa/s3cret@h/d", "postgresql://u:[s3cret]@h/d"]
)
def test_a_url_that_is_none_is_told_without_repeating_it(url: str) -> None:
    with pytest.raises(SettingsError) as error:
        PostgresStore(url)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "words"),
    [("db.abcdef.supabase.co:5432", "session pooler"), ("db.example:5432", "Is it running")],
)
async def test_a_host_that_cannot_be_reached_says_what_to_look_at(
    place: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(asyncpg, "connect", unreachable)
    store = PostgresStore(f"postgresql://u:s3cret@{place}/postgres")
    with pytest.raises(StoreUnavailable, match=words) as error:
        await store.call("stream_stats", {})
    assert "s3cret" not in str(error.value)


@pytest.fixture
def other_database(server: Server) -> Iterator[str]:
    """A second migrated database."""
    other = server.cluster.make_database()
    yield other
    server.cluster.drop_database(other)


async def test_n5_two_databases_are_told(
    server: Server, other_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.load(
        supabase_url=f"http://127.0.0.1:{server.gateway().port}",
        supabase_key=keys.SERVICE_ROLE_KEY,
        database_url=server.cluster.url(other_database),
    )
    # The databases of these tests are copies of one.
    admin = await asyncpg.connect(server.cluster.url(other_database, user=keys.SUPERUSER))
    await admin.execute("update runtime.policy set incarnation = gen_random_uuid()")
    await admin.close()
    store, same = (
        PostgresStore(server.cluster.url(other_database)),
        PostgresStore(server.cluster.url(server.database)),
    )
    try:
        await compare_places(settings, same)
        assert not caplog.records
        await compare_places(settings, store)
        (record,) = [each for each in caplog.records if each.name == "runtime.client.factories"]
        assert "lead to two databases" in record.getMessage()
        caplog.clear()
        # What cannot be asked is left alone.
        away = settings.model_copy(update={"supabase_url": "http://127.0.0.1:9"})
        await compare_places(away, store)
        assert not [each for each in caplog.records if each.name == "runtime.client.factories"]
    finally:
        await store.close()
        await same.close()
