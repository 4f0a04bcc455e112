"""Where does the chaos take place? Servers, a way that breaks, and worker processes, all of this run's own."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import psutil
from anyio.abc import Process

from runtime.errors import LocalStackError
from runtime.local import keys
from runtime.local.bootstrap import connected
from runtime.local.faults import FaultyGateway
from runtime.local.gateway_process import GatewayProcess
from runtime.local.ports import free_port
from runtime.local.postgres import PostgresServer
from runtime.local.test_cluster import Cluster
from runtime.settings import Settings
from tests.chaos.feature import Feature
from tests.chaos.ledger import FOLDER
from tests.chaos.leftovers import DISK, own_folder

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 2.0
SUBSCRIPTIONS = ("orderly.begin", "wide.left", "wide.right", "last.join", "bulk.count")
# What a connection of the campaign's own may die of while a fault strikes.
AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_TMPFS_BYTES = 1536 * 2**20

_WORKER = {
    "RUNTIME_LEASE_SECONDS": str(LEASE_SECONDS),
    "RUNTIME_SWEEP_SECONDS": "2",
    "RUNTIME_NONCE_SECONDS": "2",
    "RUNTIME_NONCE_DEADLINE_SECONDS": "1.5",
    "RUNTIME_HEARTBEAT_SECONDS": "2",
    "RUNTIME_REQUEST_SECONDS": "3",
    "RUNTIME_DRAIN_SECONDS": "5",
    "RUNTIME_POLL_SLOW_SECONDS": "0.5",
    "RUNTIME_LOG_LEVEL": "warning",
    "RUNTIME_WEBHOOKS_ALLOW": "127.0.0.0/8",
}
WAYS = {
    "both": {},
    "changes": {"RUNTIME_BROADCAST": "false", "RUNTIME_NOTIFY": "false"},
    "polling": {
        "RUNTIME_BROADCAST": "false", "RUNTIME_POSTGRES_CHANGES": "false", "RUNTIME_NOTIFY": "false",
    },
}  # fmt: skip
STORES = ("rest", "direct")


@dataclass(frozen=True, slots=True)
class Setting:
    """How the workers of one act reach the stream: by which push paths, over which store."""

    ways: str
    store: str

    def __str__(self) -> str:
        return f"{self.ways}/{self.store}"


@dataclass
class Stage:
    """Everything a fault may strike.

    Attributes:
        faults: the proxy that workers take for their Supabase project.
        is_small: whether the database lies on a small disk of its own, which can be filled.
        environment: of every worker, on top of what it needs.
        features: what the workers run beside the chain.
        at_end: what is closed when the stage is taken down, however the campaign ends.
    """

    folder: Path
    server: PostgresServer
    gateway: GatewayProcess
    faults: FaultyGateway
    database: str
    is_small: bool
    environment: dict[str, str]
    features: tuple[Feature, ...] = ()
    at_end: ExitStack = field(default_factory=ExitStack)
    setting: Setting = field(default_factory=lambda: Setting("both", "rest"))
    supervisor: Process | None = None
    extras: list[Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The database as a worker reaches it."""
        return self.server.url(self.database, user=keys.DB_USER)

    @property
    def admin_url(self) -> str:
        """The database as the superuser."""
        return self.server.url(self.database)

    @property
    def ledger_folder(self) -> Path:
        """Where handlers note what they do."""
        return self.folder / "ledger"

    @property
    def log(self) -> Path:
        """What the workers say."""
        return self.folder / "workers.log"

    @property
    def agents(self) -> list[str]:
        """The modules whose agents the workers run."""
        return ["tests.chaos.agents", *(each.agents for each in self.features)]

    def last_words(self) -> str:
        """The end of what the workers said."""
        return self.log.read_text()[-6000:]

    def settings(self, store: str) -> Settings:
        """Settings of a sender."""
        return Settings.load(
            supabase_url=self.faults.url,
            supabase_key=keys.SERVICE_ROLE_KEY,
            database_url=self.url if store == "direct" else None,
            request_seconds=3,
        )

    def workers(self) -> list[psutil.Process]:
        """The processes that do the work; the quarantine process is not among them."""
        if self.supervisor is None:
            return []
        with suppress(psutil.Error):
            children = psutil.Process(self.supervisor.pid).children()
            return [each for each in children if "never" in each.cmdline()]
        return []

    async def start_workers(self, setting: Setting) -> None:
        """Start two workers and a quarantine process under a supervisor; wait until every subscription is settled."""
        self.setting = setting
        self.supervisor = await self._run("--processes", "2")
        awaited = [*SUBSCRIPTIONS, *(name for each in self.features for name in each.subscriptions)]
        async with self.connection() as connection:
            with anyio.fail_after(60):
                while await connection.fetchval(
                    "select count(*) from runtime.subscriptions where settled and name = any ($1)",
                    awaited,
                ) < len(awaited):
                    await anyio.sleep(0.05)

    async def start_extra(self, **environment: str) -> Process:
        """Start one more worker, which differs from the others."""
        process = await self._run(**environment)
        self.extras.append(process)
        return process

    async def stop_workers(self) -> list[str]:
        """Have everybody drain; returns what was wrong with how they ended."""
        problems = []
        for process in (self.supervisor, *self.extras):
            if process is None:
                continue
            family = _family(process.pid)
            with suppress(ProcessLookupError):
                process.terminate()
            with anyio.move_on_after(30):
                await process.wait()
            if process is self.supervisor and process.returncode != 0:
                problems.append(f"the supervisor ended with {process.returncode}")
            with suppress(ProcessLookupError):
                process.kill()
            await process.aclose()
            with anyio.move_on_after(5):
                while any(_lives(each) for each in family):
                    await anyio.sleep(0.05)
            problems += [f"process {each.pid} was left: {each.cmdline()}" for each in family if _lives(each)]
        self.supervisor = None
        self.extras.clear()
        return problems

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection as the superuser, made as soon as the database lets us in."""
        while True:
            try:
                manager = connected(self.admin_url)
                connection = await manager.__aenter__()
                break
            except Exception:  # noqa: BLE001 - whatever keeps us out, a fault is over soon
                await anyio.sleep(0.1)
        try:
            yield connection
        finally:
            with suppress(Exception):
                await manager.__aexit__(None, None, None)

    async def restart_postgres(self) -> None:
        """Start the server again, however it has ended."""
        with anyio.fail_after(60):
            while True:
                try:
                    await anyio.to_thread.run_sync(self.server.start)
                    return
                except LocalStackError:
                    await anyio.sleep(0.2)

    async def _run(self, *options: str, **environment: str) -> Process:
        worker = {**_WORKER, **WAYS[self.setting.ways], **self.environment, **environment}
        return await self.start_runtime("run", *self.agents, "--quiet", *options, **worker)

    async def start_runtime(self, *arguments: str, **environment: str) -> Process:
        """Start a command of the runtime on this stage, behind its faults; it is known to belong to the campaign."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RUNTIME_", "SUPABASE_"))
        }
        kept.pop("DATABASE_URL", None)
        store = {"DATABASE_URL": self.url} if self.setting.store == "direct" else {}
        with self.log.open("ab") as log:
            return await anyio.open_process(
                [sys.executable, "-m", "runtime", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **kept,
                    **store,
                    "SUPABASE_URL": self.faults.url,
                    "SUPABASE_SERVICE_ROLE_KEY": keys.SERVICE_ROLE_KEY,
                    FOLDER: str(self.ledger_folder),
                    **environment,
                },
            )


@asynccontextmanager
async def staged(environment: dict[str, str], features: tuple[Feature, ...] = ()) -> AsyncIterator[Stage]:
    """A stage of its own, taken down in the end whatever happened on it.

    Args:
        environment: of every worker, on top of what it needs.
        features: what the workers run beside the chain.
    """
    with own_folder() as folder:
        (folder / "ledger").mkdir()
        is_small = _mount(folder / DISK)
        server = PostgresServer(
            folder / DISK / "postgres",
            port=free_port(),
            # A crash is one of the server, not of the machine: the kernel of the system keeps what was written.
            settings={
                "fsync": "off",
                "max_connections": "150",
                "max_wal_size": "256MB",
                "restart_after_crash": "on",
            },
            trust=True,
        )
        await anyio.to_thread.run_sync(server.start)
        with closing(Cluster(server)) as cluster:
            await cluster.prepare()
            database = await anyio.to_thread.run_sync(cluster.make_database)
        gateway = GatewayProcess(folder, port=free_port(), database_url=server.url(database))
        await anyio.to_thread.run_sync(gateway.start)
        async with FaultyGateway(f"http://127.0.0.1:{gateway.port}") as faults:
            with ExitStack() as at_end:
                yield Stage(
                    folder, server, gateway, faults, database, is_small, environment, features, at_end
                )


def _mount(folder: Path) -> bool:
    """Make a small disk in memory where we may mount one, else an ordinary folder; tells which."""
    folder.mkdir()
    folder.chmod(0o755)
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES},mode=755", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
