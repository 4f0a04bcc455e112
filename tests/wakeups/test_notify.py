"""Is a NOTIFY heard, and is it noticed when it is not? Over a real PostgreSQL."""

import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import pytest

from runtime.settings import Settings
from runtime.wakeups.notify import NotifyWakeups
from tests.conftest import Cluster
from tests.faulty_proxy import faulty_proxy
from tests.pgbouncer import pooler

pytestmark = pytest.mark.anyio


class Ear:
    """A listener that notes what it is told, and sends nonces through the database as a worker does."""

    def __init__(self, connection: Any, worker: Any) -> None:
        self.heard: list[str] = []
        self.nonces = 0
        self.proves = True
        self._connection = connection
        self._worker = worker
        self._asked: list[str] = []
        self._news = anyio.Event()

    def wake(self, why: str, message: int | None = None) -> None:
        self._note(f"woken by {why}")

    def live(self, path: str) -> None:
        self._note(f"{path} live")

    def gap(self, path: str, why: str) -> None:
        self._note(f"{path} gap")

    def lost(self, path: str, why: str) -> None:
        self._note(f"{path} lost: {why}")

    def prove(self, nonce: str) -> None:
        self.nonces += 1
        self._asked.append(nonce)
        self._news.set()

    def _note(self, what: str) -> None:
        self.heard.append(what)
        self._news.set()

    async def answer(self) -> None:
        """Carry nonces through the database, for ever."""
        while True:
            while self._asked:
                nonce = self._asked.pop()
                if self.proves:
                    await self._connection.fetchval("select public.stream_beat($1, $2)", self._worker, nonce)
            await anyio.sleep(0.005)

    async def until(self, *what: str, seconds: float = 60) -> None:
        """Wait until these were heard in this order, whatever else was."""
        with anyio.fail_after(seconds):
            while True:
                rest = iter(self.heard)
                if all(any(told.startswith(each) for told in rest) for each in what):
                    return
                self._news = anyio.Event()
                await self._news.wait()


@asynccontextmanager
async def listening(database: str, url: str | None = None, **settings: Any) -> AsyncIterator[Any]:
    """Wake-ups that run, their listener, and a connection beside them."""
    worker = uuid4()
    given = Settings.load(**{"nonce_seconds": 60, "nonce_deadline_seconds": 2, **settings})
    connection, ears = await asyncpg.connect(database), await asyncpg.connect(database)
    wakeups = NotifyWakeups(url or database, worker, settings=given)
    ear = Ear(ears, worker)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ear.answer)
            tasks.start_soon(wakeups.run, ear)
            yield wakeups, ear, connection, f"runtime_{str(worker).replace('-', '_')}"
            tasks.cancel_scope.cancel()
    finally:
        await connection.close()
        await ears.close()


async def backend(connection: Any) -> int:
    """The process that listens."""
    pid: int = await connection.fetchval(
        "select pid from pg_stat_activity where application_name = 'agent-runtime notify' "
        "and datname = current_database()"
    )
    return pid


async def test_it_is_live_when_the_nonce_came_back_and_wakes(database: str) -> None:
    async with listening(database) as (_, ear, connection, channel):
        await ear.until("notify live")
        assert ear.nonces == 1
        await connection.execute("select pg_notify($1, 'task.output')", channel)
        await ear.until("notify live", "woken by notify")
        assert ear.heard == ["notify live", "woken by notify"]
        await connection.execute("select pg_notify($1, 'answer')", channel)
        await ear.until("notify live", "woken by notify", "woken by answer")


async def test_it_is_not_live_before(database: str) -> None:
    async with listening(database, nonce_deadline_seconds=0.3) as (_, ear, _connection, _channel):
        ear.proves = False
        await ear.until("notify lost: deaf", "notify lost: deaf")
        assert "notify live" not in ear.heard
        ear.proves = True
        await ear.until("notify live")


async def test_a_nonce_of_somebody_else_proves_nothing(database: str) -> None:
    async with listening(database, nonce_deadline_seconds=0.5) as (_, ear, connection, channel):
        ear.proves = False
        for _ in range(20):
            await connection.execute("select pg_notify($1, 'nonce:forged')", channel)
            await anyio.sleep(0.01)
        await ear.until("notify lost: deaf")
        assert "notify live" not in ear.heard


async def test_its_backend_is_terminated_and_it_comes_back(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.wakeups")
    async with listening(database) as (_, ear, connection, channel):
        await ear.until("notify live")
        await connection.execute("select pg_terminate_backend($1)", await backend(connection))
        await ear.until("notify live", "notify lost: the connection was closed", "notify live")
        await connection.execute("select pg_notify($1, 'x')", channel)
        await ear.until("notify lost", "notify live", "woken by notify")
    said = [record.getMessage() for record in caplog.records if record.name == "runtime.wakeups"]
    assert [text.split(" at ")[0] for text in said] == ["notify is live", "notify", "notify is live"]


async def test_a_frozen_backend_is_noticed_by_the_nonce(database: str) -> None:
    async with listening(database, nonce_seconds=0.2, nonce_deadline_seconds=1) as (_, ear, connection, _c):
        await ear.until("notify live")
        frozen = await backend(connection)
        os.kill(frozen, signal.SIGSTOP)
        try:
            await ear.until("notify live", "notify lost: deaf", "notify live")
        finally:
            os.kill(frozen, signal.SIGCONT)


async def test_a_network_that_swallows_is_noticed_by_the_nonce(cluster: Cluster, database: str) -> None:
    async with faulty_proxy(cluster.server.port) as proxy:
        url = database.replace(f":{cluster.server.port}/", f":{proxy.port}/")
        async with listening(database, url, nonce_seconds=0.2, nonce_deadline_seconds=1) as (_, ear, _c, _n):
            await ear.until("notify live")
            proxy.frozen = True
            await ear.until("notify live", "notify lost: deaf")
            proxy.frozen = False
            await ear.until("notify lost", "notify live")


async def test_a_doubt_asks_at_once(database: str) -> None:
    async with listening(database) as (wakeups, ear, _connection, _channel):
        await ear.until("notify live")
        # The wait for a doubt begins a moment after it is live.
        with anyio.fail_after(60):
            while ear.nonces < 2:
                wakeups.doubt()
                await anyio.sleep(0.01)
        assert ear.heard == ["notify live"]


async def test_through_a_transaction_pooler_it_is_lost_and_said_once(
    cluster: Cluster, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.wakeups")
    name = database.rpartition("/")[2]
    with pooler(cluster.server.port, "transaction") as running:
        async with listening(database, running.url(name), nonce_seconds=0.05) as (
            _,
            ear,
            connection,
            _channel,
        ):
            await ear.until(*["notify lost: a transaction pooler"] * 3)
            assert "notify live" not in ear.heard
            assert ear.nonces == 0
            # Nothing of ours is left behind on the pooler's connections.
            assert await backend(connection) is None
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "RUNTIME_NOTIFY=false" in warnings[0]
    assert "postgres:" not in warnings[0]


async def test_a_url_that_names_a_pooler_is_believed(database: str) -> None:
    async with listening(database, f"{database}?pgbouncer=true") as (_, ear, _connection, _channel):
        await ear.until("notify lost: a transaction pooler")


async def test_through_a_session_pooler_it_is_live(cluster: Cluster, database: str) -> None:
    with pooler(cluster.server.port, "session") as running:
        async with listening(database, running.url(database.rpartition("/")[2])) as (
            _,
            ear,
            connection,
            channel,
        ):
            await ear.until("notify live")
            await connection.execute("select pg_notify($1, 'x')", channel)
            await ear.until("woken by notify")


async def test_nobody_is_there_and_then_somebody(cluster: Cluster, database: str) -> None:
    async with faulty_proxy(cluster.server.port) as proxy:
        proxy.refusing = True
        url = database.replace(f":{cluster.server.port}/", f":{proxy.port}/")
        async with listening(database, url) as (_, ear, _connection, _channel):
            # More failures than a few must not make it slow: backoff is capped, and this is no pooler.
            await ear.until(*["notify lost: no connection"] * 4)
            proxy.refusing = False
            await ear.until("notify live")


async def test_after_it_was_live_a_database_that_stays_away_is_warned_of_once(
    cluster: Cluster, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.wakeups")
    async with faulty_proxy(cluster.server.port) as proxy:
        url = database.replace(f":{cluster.server.port}/", f":{proxy.port}/")
        async with listening(database, url) as (_, ear, _connection, _channel):
            await ear.until("notify live")
            proxy.refusing = True
            await proxy.cut()
            await ear.until("notify live", "notify lost: the connection", *["notify lost: no connection"] * 3)
    levels = [record.levelname for record in caplog.records if "is lost" in record.getMessage()]
    # The first is the loss itself, of which the listener has warned.
    assert levels[:2] == ["INFO", "WARNING"]
    assert levels.count("WARNING") == 1


async def test_cancelled_it_leaves_no_connection(cluster: Cluster, database: str) -> None:
    async with faulty_proxy(cluster.server.port) as proxy:
        url = database.replace(f":{cluster.server.port}/", f":{proxy.port}/")
        async with listening(database, url) as (_, ear, _connection, _channel):
            await ear.until("notify live")
            proxy.frozen = True
        with anyio.fail_after(60):
            while proxy.open_connections:
                await anyio.sleep(0.01)
