"""One database, and every way a store can reach it."""

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runtime.local import keys
from runtime.local.gateway_process import GatewayProcess
from runtime.local.ports import free_port
from runtime.store import Store
from runtime.store.postgres import PostgresStore
from runtime.store.supabase import SupabaseStore
from supabase import create_async_client
from tests.conftest import Cluster
from tests.pgbouncer import Pooler, pooler

WAYS = ("direct", "transaction-pooler", "session-pooler", "rest", "own-client")
_numbers = itertools.count(1)


@dataclass
class Server:
    """A database with gateways and poolers in front of it, started when first asked for."""

    cluster: Cluster
    database: str
    folder: Path
    gateways: dict[str, GatewayProcess] = field(default_factory=dict)

    def gateway(self, database: str | None = None) -> GatewayProcess:
        """The gateway that serves a database."""
        database = database or self.database
        if database not in self.gateways:
            folder = self.folder / database
            folder.mkdir()
            url = self.cluster.url(database, user=keys.SUPERUSER)
            self.gateways[database] = GatewayProcess(folder, port=free_port(), database_url=url)
        self.gateways[database].start()
        return self.gateways[database]

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """A plain connection as the superuser."""
        connection = await asyncpg.connect(self.cluster.url(self.database, user=keys.SUPERUSER))
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def replaced(self, function: str, body: str) -> AsyncIterator[Any]:
        """A connection, while a function of one argument, `subscription`, has another body."""
        async with self.admin() as admin:
            before = await admin.fetchval(
                "select pg_get_functiondef(oid) from pg_proc where proname = $1", function
            )
            await admin.execute(
                f"create or replace function public.{function}(subscription text) returns json language plpgsql "
                f"as $$ begin {body} end $$"
            )
            try:
                yield admin
            finally:
                await admin.execute(before)


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Server]:
    """One migrated database for a module."""
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-test-"))
    server = Server(cluster, cluster.make_database(), folder)
    try:
        yield server
    finally:
        for database, gateway in server.gateways.items():
            gateway.kill()
            cluster.drop_database(database)
        cluster.drop_database(server.database)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def transaction_pooler(cluster: Cluster) -> Iterator[Pooler]:
    """PgBouncer, a server connection per transaction."""
    with pooler(cluster.server.port, "transaction") as running:
        yield running


@pytest.fixture(scope="session")
def session_pooler(cluster: Cluster) -> Iterator[Pooler]:
    """PgBouncer, a server connection per client."""
    with pooler(cluster.server.port, "session") as running:
        yield running


@dataclass
class Way:
    """One way to a database.

    Attributes:
        name: one of WAYS.
        open: a store on the database of this name, by default the migrated one.
        port: where its server listens.
        through: the same, but on another port, and in less time.
    """

    name: str
    server: Server
    port: int
    connect: Callable[..., Awaitable[Store]]

    @property
    def is_rest(self) -> bool:
        """Over the REST API."""
        return self.name in ("rest", "own-client")

    def open(self, **options: Any) -> AbstractAsyncContextManager[Store]:
        """A store that is closed in the end. Options: port, database, secret, seconds."""

        @asynccontextmanager
        async def opened() -> AsyncIterator[Store]:
            store = await self.connect(**options)
            try:
                yield store
            finally:
                await store.close()

        return opened()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, server: Server) -> Way:
    """Each way, one after the other."""
    name = request.param
    if name in ("rest", "own-client"):

        async def connect_rest(
            port: int = 0, database: str = "", secret: str = keys.SERVICE_ROLE_KEY, seconds: float = 10
        ) -> Store:
            url = f"http://127.0.0.1:{port or server.gateway(database or None).port}"
            if name == "rest":
                return await SupabaseStore.connect(url, secret, request_seconds=seconds)
            return SupabaseStore(await create_async_client(url, secret), request_seconds=seconds)

        return Way(name, server, server.gateway().port, connect_rest)
    at = server.cluster.server.port
    if name != "direct":
        at = request.getfixturevalue(name.replace("-", "_")).port

    async def connect(
        port: int = 0, database: str = "", secret: str = "postgres", seconds: float = 10
    ) -> Store:
        url = f"postgresql://postgres:{secret}@127.0.0.1:{port or at}/{database or server.database}"
        return PostgresStore(url, request_seconds=seconds)

    return Way(name, server, at, connect)


@pytest.fixture
async def store(way: Way) -> AsyncIterator[Store]:
    """A store on the migrated database."""
    async with way.open() as store:
        yield store


@pytest.fixture
def key() -> str:
    """A key of this test alone."""
    return f"test.k{next(_numbers)}"
