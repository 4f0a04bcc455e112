"""On what is everybody measured? One PostgreSQL of the run's own, with the same settings; every run on a fresh copy."""

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import asyncpg

from runtime.local import keys
from runtime.local.bootstrap import prepare_cluster
from runtime.local.cleanup import guarded
from runtime.local.gateway_process import GatewayProcess
from runtime.local.ports import free_port
from runtime.local.postgres import PostgresServer
from runtime.local.programs import embedded_binaries
from tests.bench.contestants import OURS, contestant
from tests.bench.environments import ROOT, python_of
from tests.bench.machine import cpu_seconds
from tests.bench.workers import Workers, program_environment

SETTINGS: Final = {
    "shared_buffers": "256MB",
    "max_connections": "150",
    # Checkpoints begin each run, and none strikes one contestant by chance.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    # Who asked what, where statements are counted.
    "log_line_prefix": "[%d %u] ",
}
_SETTLE_SECONDS = 30


@dataclass(frozen=True)
class Shape:
    """What a database holds when a run begins on it.

    Attributes:
        queued: messages that wait, each for as many deliveries as there are handlers.
        history: messages that were finished before.
        handlers: handlers of the one key, by ours alone.
        agents: the module of ours.
    """

    queued: int = 0
    history: int = 0
    handlers: int = 1
    agents: str = "fan_out"


@dataclass(frozen=True)
class Database:
    """A database of one run.

    Attributes:
        url: for the contestant.
        admin_url: as the superuser.
        user: of the contestant.
    """

    name: str
    url: str
    admin_url: str
    user: str


class Server:
    """A running PostgreSQL, and the templates made so far.

    Args:
        postgres: the server.
        folder: a place for the files of runs.
        binaries: its programs; the embedded ones when None.
    """

    def __init__(self, postgres: PostgresServer, folder: Path, binaries: Path | None) -> None:
        self.folder = folder
        self._binaries = binaries
        self._postgres = postgres
        self._templates: dict[tuple[str, Shape], str] = {}
        self._numbers = itertools.count(1)
        self._gateway: GatewayProcess | None = None
        self._roads: set[int] = set()

    @property
    def pids(self) -> set[int]:
        """The processes that serve: the database and, while there are any, the gateway and the roads to them."""
        gateway = None if self._gateway is None else self._gateway.pid
        return {pid for pid in (self._postgres.pid, gateway) if pid is not None} | self._roads

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds so far of the database and of the gateway, 0 where there is none."""
        gateway = [] if self._gateway is None else filter(None, [self._gateway.pid])
        return {"database": cpu_seconds(filter(None, [self._postgres.pid])), "gateway": cpu_seconds(gateway)}

    def program(self, name: str) -> Path:
        """A program of PostgreSQL, such as pgbench."""
        return (self._binaries or embedded_binaries()) / name

    async def fresh(self, name: str, shape: Shape) -> Database:
        """A fresh database of this contestant and shape, after a checkpoint; the one before is gone."""
        template = await self._template(name, shape)
        return await self._copied(template, f"run_{name}", name)

    async def kept(self, name: str, shape: Shape) -> Database:
        """The template itself: for one too large to be copied. What is done to it stays."""
        return self._database(await self._template(name, shape), name)

    async def copied(self, database: Database, name: str) -> Database:
        """A copy of a database that nobody is connected to; one of that name before is gone."""
        return await self._copied(database.name, name, OURS)

    async def log_statements(self, database: Database) -> None:
        """Have the server log every statement from now on; `statements` counts those of one database."""
        async with self.connected() as connection:
            await connection.execute("alter system set log_statement = 'all'")
            await connection.execute("select pg_reload_conf()")

    def statements(self, database: Database) -> int:
        """How many statements this database's user has been logged with so far."""
        mark = f"[{database.name} {database.user}]"
        with self._postgres.log.open(errors="replace") as log:
            return sum(mark in line and "LOG:" in line for line in log)

    @asynccontextmanager
    async def connected(self, database: Database | None = None) -> AsyncIterator[Any]:
        """A connection as the superuser."""
        connection = await asyncpg.connect(self._postgres.url() if database is None else database.admin_url)
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def gateway(self, database: Database) -> AsyncIterator[GatewayProcess]:
        """The local stack's gateway before this database."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self._gateway = gateway = GatewayProcess(folder, port=free_port(), database_url=database.admin_url)
        try:
            await anyio.to_thread.run_sync(gateway.start)
            yield gateway
        finally:
            await anyio.to_thread.run_sync(gateway.kill)
            self._gateway = None
            async with self.connected() as connection:
                # Its slot holds the database.
                await connection.execute(
                    "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where active"
                )

    @asynccontextmanager
    async def road(self, port: int | None, seconds: float) -> AsyncIterator[int]:
        """The port of a road that takes so many seconds each way to a port; None is the database's."""
        async with await anyio.open_process(
            [sys.executable, "-m", "tests.bench.road", str(port or self._postgres.port), str(seconds)],
            cwd=ROOT, env=program_environment(), stderr=None,
        ) as process:  # fmt: skip
            self._roads.add(process.pid)
            try:
                assert process.stdout is not None
                yield int(await process.stdout.receive())
            finally:
                self._roads.discard(process.pid)
                process.kill()

    async def _template(self, name: str, shape: Shape) -> str:
        known = self._templates.get((name, shape))
        if known is None:
            known = f"template_{name}_{next(self._numbers)}"
            await self._make(known, name, shape)
            self._templates[name, shape] = known
        return known

    async def _make(self, template: str, name: str, shape: Shape) -> None:
        empty = Shape(handlers=shape.handlers, agents=shape.agents)
        if shape != empty:
            database = await self._copied(await self._template(name, empty), template, name)
        else:
            database = self._database(template, name)
            async with self.connected() as connection:
                await connection.execute(f"create database {template} template template0")
            await call(name, "install", database.admin_url)
            if name == OURS:
                await self._subscribe(database, shape)
        if shape.history:
            async with self.connected(database) as connection:
                await connection.execute("set synchronous_commit = off")
                for statement in contestant(name).history:
                    await connection.execute(statement.format(count=shape.history))
        if shape.queued:
            await call(name, "send", database.url, shape.queued, 1000)
        async with self.connected(database) as connection:
            await connection.execute("vacuum analyze")

    async def _subscribe(self, database: Database, shape: Shape) -> None:
        """Let a worker subscribe, so that messages written later are for its handlers."""
        async with (
            self.connected(database) as connection,
            Workers.started(
                self.folder, OURS, database.url, shape.agents, handlers=shape.handlers
            ) as workers,
        ):
            with anyio.fail_after(_SETTLE_SECONDS):
                while not await connection.fetchval(
                    "select count(*) > 0 and bool_and(settled) and exists (select from runtime.workers) "
                    "from runtime.subscriptions"
                ):
                    workers.check()
                    await anyio.sleep(0.05)
            await workers.end()

    async def _copied(self, template: str, name: str, who: str) -> Database:
        async with self.connected() as connection:
            await connection.execute(f"drop database if exists {name} with (force)")
            await connection.execute(f"create database {name} template {template} strategy file_copy")
            await connection.execute("checkpoint")
        return self._database(name, who)

    def _database(self, name: str, who: str) -> Database:
        # Ours runs as the role that a Supabase project gives, who is no superuser.
        user = keys.DB_USER if who == OURS else keys.SUPERUSER
        return Database(name, self._postgres.url(name, user), self._postgres.url(name), user)


@asynccontextmanager
async def running_server(binaries: Path | None = None) -> AsyncIterator[Server]:
    """A server on the disk of the temporary folder, with its durability on; deleted in the end.

    Args:
        binaries: the folder of `postgres` and `initdb`; the embedded PostgreSQL when None.
    """
    folder = _folder()
    postgres = PostgresServer(
        folder / "postgres", port=free_port(), binaries=binaries, settings=SETTINGS, trust=True
    )
    with guarded(folder):
        try:
            await anyio.to_thread.run_sync(postgres.start)
            await prepare_cluster(postgres.url())
            yield Server(postgres, folder, binaries)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(postgres.delete)
            shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-bench-"))
    # PostgreSQL may run as another account.
    folder.chmod(0o755)
    return folder


async def call(name: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Any:
    """Run a contestant's program to its end; returns the JSON it printed, if any.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    answer = await anyio.run_process(
        [str(python_of(name)), "-m", "tests.bench.program", name, *map(str, arguments)],
        cwd=ROOT,
        env=program_environment(environment),
        stderr=subprocess.PIPE,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"{name} {arguments[0]}: {answer.stderr.decode()[-2000:]}")
    lines = answer.stdout.decode().splitlines()
    return json.loads(lines[-1]) if lines else None
