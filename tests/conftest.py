"""Servers of the tests' own: PostgreSQL 18 from the wheel, PostgreSQL 15 where Debian has it, databases by template."""

import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import asyncpg
import pytest

from runtime.local.migrations import bootstrap, migrate
from runtime.local.postgres import PostgresServer

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
_TEMPLATE = "runtime_template"
_numbers = itertools.count(1)


def free_port() -> int:
    """A port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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

    def drop_database(self, name: str) -> None:
        """Drop it, whoever is connected."""
        anyio.run(self._execute, f"drop database if exists {name} with (force)")

    def url(self, database: str, *, user: str = "postgres") -> str:
        """Its URL, as the role that owns it, or as another one."""
        return self.server.url(database, user=user)

    async def prepare(self) -> None:
        """Make the template."""
        await self._execute(f"create database {_TEMPLATE}")
        connection = await asyncpg.connect(self.server.url(_TEMPLATE))
        await bootstrap(connection)
        await connection.execute(f"alter database {_TEMPLATE} owner to postgres")
        await connection.close()
        connection = await asyncpg.connect(self.url(_TEMPLATE))
        await migrate(connection)
        await connection.close()

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.server.url())
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def _cluster(binaries: Path | None) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-test-"))
    # PostgreSQL may run as another user than the tests.
    folder.chmod(0o755)
    server = PostgresServer(
        folder / "postgres",
        free_port(),
        password="postgres",
        binaries=binaries,
        settings={
            "fsync": "off",
            "full_page_writes": "off",
            "max_wal_senders": "50",
            "max_replication_slots": "50",
            "max_connections": "300",
        },
    )
    try:
        server.start()
        cluster = Cluster(server)
        anyio.run(cluster.prepare)
        yield cluster
    finally:
        server.stop(mode="immediate")
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
    """The URL of a fresh database with every migration, on the embedded PostgreSQL."""
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
