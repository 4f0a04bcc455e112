"""A database for each test, copied from a template that has every migration."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from runtime.local.bootstrap import Connection, connected, prepare_cluster, prepare_database
from runtime.local.migrations import apply_migrations, migrations_folder, read_migrations
from runtime.local.ports import free_port
from runtime.local.postgres import DISPOSABLE, PostgresServer

_TEMPLATE: Final = "runtime_template"
_SETTINGS: Final = {
    **DISPOSABLE,
    "max_connections": "200",
    "max_wal_senders": "50",
    "max_replication_slots": "50",
}
_ROOM_BYTES: Final = 4 * 1024**3
_numbers = itertools.count(1)


@dataclass
class Cluster:
    """A running server whose template database has every migration; a fresh database is a copy of it.

    Every method blocks: from a loop, call it in a thread. A connection is kept open until `close`: connections of their
    own would be a third of what a database costs.
    """

    server: PostgresServer
    _opened: ExitStack = field(default_factory=ExitStack, init=False, repr=False)
    _administrator: "_Administrator | None" = field(default=None, init=False, repr=False)
    _portal: BlockingPortal | None = field(default=None, init=False, repr=False)

    def make_database(self) -> str:
        """A fresh database; returns its name."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.execute(f"create database {name} template {_TEMPLATE} strategy file_copy owner postgres")
        return name

    def make_empty_database(self) -> str:
        """A fresh database of Supabase, without our migrations; returns its name."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.execute(f"create database {name} owner postgres")
        anyio.run(prepare_database, self.server.url(name))
        return name

    def execute(self, statement: str, *arguments: str) -> None:
        """Run a statement as the superuser."""
        if self._portal is None or self._administrator is None:
            self._portal = self._opened.enter_context(start_blocking_portal(name="runtime-test-cluster"))
            self._administrator = self._opened.enter_context(
                self._portal.wrap_async_context_manager(_Administrator(self.server.url()))
            )
        self._portal.call(self._administrator.execute, statement, *arguments)

    def drop_database(self, name: str) -> None:
        """Drop a database, even with open connections."""
        # A slot in use holds a database even against FORCE: end its walsender first, and wait until it has.
        self.execute(
            "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots "
            "where database = $1 and active_pid is not null",
            name,
        )
        self.execute(f"drop database if exists {name} with (force)")

    def close(self) -> None:
        """Close the connection."""
        self._opened.close()

    def url(self, database: str, *, user: str = "postgres") -> str:
        """Its URL, as the role that owns it, or as another one: supabase_admin is the superuser."""
        return self.server.url(database, user=user)

    async def prepare(self) -> None:
        """Make the template."""
        await prepare_cluster(self.server.url())
        async with connected(self.server.url()) as connection:
            await connection.execute(f"create database {_TEMPLATE} owner postgres")
        template = self.server.url(_TEMPLATE)
        await prepare_database(template)
        await apply_migrations(template, read_migrations(migrations_folder()))


class _Administrator(AsyncExitStack):
    """One connection of the superuser, opened when it is needed and again when it was lost."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._lock = anyio.Lock()
        self._connection: Connection | None = None

    async def execute(self, statement: str, *arguments: str) -> None:
        """Run one statement after another, whoever asks."""
        async with self._lock:
            await (await self._living()).execute(statement, *arguments)

    async def _living(self) -> Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        opened = await self.enter_async_context(connected(self._url))
        self._connection = opened
        return opened


def memory_folder() -> Path | None:
    """A folder in memory where there is room: a database per test costs 20 ms there, and 1 s on a busy disk."""
    folder = Path("/dev/shm")
    # The programs of PostgreSQL may be copied there.
    if "TMPDIR" in os.environ or not folder.is_dir() or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return None
    return folder if shutil.disk_usage(folder).free >= _ROOM_BYTES else None


@contextmanager
def running_cluster(binaries: Path | None = None) -> Iterator[Cluster]:
    """A server of its own with its template, deleted in the end.

    Args:
        binaries: the folder of `postgres` and `initdb`; the embedded PostgreSQL 18 when None.
    """
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-test-", dir=memory_folder()))
    # PostgreSQL may run as another user than the tests.
    folder.chmod(0o755)
    server = PostgresServer(
        folder / "postgres", port=free_port(), binaries=binaries, settings=_SETTINGS, trust=True
    )
    try:
        server.start()
        with closing(Cluster(server)) as cluster:
            anyio.run(cluster.prepare)
            yield cluster
    finally:
        server.delete()
        shutil.rmtree(folder, ignore_errors=True)
