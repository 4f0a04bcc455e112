"""Servers of the tests' own: PostgreSQL 18 from the wheel, PostgreSQL 15 where Debian has it, databases by template."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from runtime.local import keys
from runtime.local.bootstrap import connected, prepare_cluster, prepare_database
from runtime.local.gateway_process import GatewayProcess
from runtime.local.migrations import apply_migrations, migrations_folder, read_migrations
from runtime.local.ports import free_port
from runtime.local.postgres import PostgresServer

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
_TEMPLATE = "runtime_template"
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_wal_senders": "50",
    "max_replication_slots": "50",
}
_ROOM_BYTES = 4 * 1024**3
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The backend everything runs on."""
    return "asyncio"


@dataclass
class Cluster:
    """A running server whose template database has every migration."""

    server: PostgresServer

    def make_database(self) -> str:
        """A fresh database; returns its name."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        anyio.run(
            self._execute, f"create database {name} template {_TEMPLATE} strategy file_copy owner postgres"
        )
        return name

    def make_empty_database(self) -> str:
        """A fresh database of Supabase, without our migrations; returns its name."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        anyio.run(self._execute, f"create database {name} owner postgres")
        anyio.run(prepare_database, self.server.url(name))
        return name

    def execute(self, statement: str) -> None:
        """Run a statement as the superuser."""
        anyio.run(self._execute, statement)

    def drop_database(self, name: str) -> None:
        """Drop it, whoever is connected."""
        anyio.run(self._drop, name)

    def url(self, database: str, *, user: str = "postgres") -> str:
        """Its URL, as the role that owns it, or as another one: supabase_admin is the superuser."""
        return self.server.url(database, user=user)

    async def prepare(self) -> None:
        """Make the template."""
        await prepare_cluster(self.server.url())
        await self._execute(f"create database {_TEMPLATE} owner postgres")
        template = self.server.url(_TEMPLATE)
        await prepare_database(template)
        await apply_migrations(template, read_migrations(migrations_folder()))

    async def _execute(self, statement: str) -> None:
        async with connected(self.server.url()) as connection:
            await connection.execute(statement)

    async def _drop(self, name: str) -> None:
        async with connected(self.server.url()) as connection:
            # A slot in use holds a database even against FORCE: end its walsender first, and wait until it has.
            await connection.execute(
                "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots "
                "where database = $1 and active_pid is not null",
                name,
            )
            await connection.execute(f"drop database if exists {name} with (force)")


def _memory() -> Path | None:
    """A folder in memory where there is room: a database per test costs 20 ms there, and 1 s on a busy disk."""
    folder = Path("/dev/shm")
    if "TMPDIR" in os.environ or not folder.is_dir() or shutil.disk_usage(folder).free < _ROOM_BYTES:
        return None
    return folder


def _cluster(binaries: Path | None) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-test-", dir=_memory()))
    # PostgreSQL may run as another user than the tests.
    folder.chmod(0o755)
    server = PostgresServer(
        folder / "postgres", port=free_port(), binaries=binaries, settings=_SETTINGS, trust=True
    )
    try:
        server.start()
        cluster = Cluster(server)
        anyio.run(cluster.prepare)
        yield cluster
    finally:
        server.delete()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The embedded PostgreSQL 18."""
    yield from _cluster(None)


@pytest.fixture(scope="session")
def cluster_15() -> Iterator[Cluster]:
    """Debian's PostgreSQL 15."""
    if not (DEBIAN_15 / "postgres").exists():
        pytest.skip("PostgreSQL 15 is not installed: apt-get install postgresql-15")
    yield from _cluster(DEBIAN_15)


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """The URL of a fresh database with every migration, on the embedded PostgreSQL, as the role postgres."""
    name = cluster.make_database()
    yield cluster.url(name)
    cluster.drop_database(name)


@pytest.fixture(params=["pg15", "pg18"])
def kernel_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same on both versions, one after the other."""
    cluster: Cluster = request.getfixturevalue("cluster_15" if request.param == "pg15" else "cluster")
    name = cluster.make_database()
    yield cluster.url(name)
    cluster.drop_database(name)


@dataclass
class GatewayStack:
    """A gateway over a fresh database. Its methods block for up to a second: from a loop, call them in a thread."""

    gateway: GatewayProcess
    db_url: str
    admin_url: str
    anon_key: str = keys.ANON_KEY
    service_role_key: str = keys.SERVICE_ROLE_KEY
    publishable_key: str = keys.PUBLISHABLE_KEY
    secret_key: str = keys.SECRET_KEY
    jwt_secret: str = keys.JWT_SECRET

    @property
    def api_url(self) -> str:
        """What a Supabase client is given; the same after a restart."""
        return f"http://127.0.0.1:{self.gateway.port}"

    def kill_gateway(self) -> None:
        """End the gateway as a crash would."""
        self.gateway.kill()

    def stop_gateway(self) -> None:
        """End the gateway as a deploy would."""
        self.gateway.stop()

    def start_gateway(self) -> None:
        """Start it again, on the same port, and wait until it is healthy."""
        self.gateway.start()


@pytest.fixture
def stack(cluster: Cluster) -> Iterator[GatewayStack]:
    """What `runtime local start` gives: a gateway of the test's own on a database of its own."""
    name = cluster.make_database()
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-test-"))
    admin_url = cluster.url(name, user=keys.SUPERUSER)
    gateway = GatewayProcess(folder, port=free_port(), database_url=admin_url)
    try:
        gateway.start()
        yield GatewayStack(gateway, cluster.url(name), admin_url)
    finally:
        gateway.kill()
        cluster.drop_database(name)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def empty_database(cluster: Cluster) -> Iterator[str]:
    """The URL of a Supabase database without our migrations, as the superuser."""
    name = cluster.make_empty_database()
    yield cluster.url(name, user=keys.SUPERUSER)
    cluster.drop_database(name)
