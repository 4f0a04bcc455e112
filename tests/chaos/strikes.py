"""What goes wrong? Each fault is a context: entered it strikes, left it heals."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random

import anyio
import jwt
import psutil

from runtime.local import keys
from tests.chaos.leftovers import DISK, note_faked
from tests.chaos.stage import AWAY, LEASE_SECONDS, Stage

EXCHANGE = "stream_exchange"
FAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
)
_TOKEN_SECONDS = 2
Strike = Callable[[Stage, Random], AbstractAsyncContextManager[None]]


class NotRun(Exception):
    """This fault cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    Attributes:
        needs: what it strikes: a push path's `socket`, the `rest` store, or nothing in particular.
        seconds: how long it lasts, at least and at most.
    """

    name: str
    strike: Strike
    needs: str = ""
    seconds: tuple[float, float] = (0.5, 2.0)

    def applies(self, stage: Stage) -> bool:
        """Whether there is anything to strike with the workers of this act."""
        if self.needs == "socket":
            return stage.setting.ways != "polling"
        return self.needs != "rest" or stage.setting.store == "rest"


# Processes


@asynccontextmanager
async def _killed(stage: Stage, random: Random) -> AsyncIterator[None]:
    if workers := stage.workers():
        with suppress(psutil.Error):
            random.choice(workers).send_signal(signal.SIGKILL)
    yield


@asynccontextmanager
async def _frozen(stage: Stage, random: Random) -> AsyncIterator[None]:
    workers = stage.workers()
    victim = random.choice(workers) if workers else None
    if victim is not None:
        with suppress(psutil.Error):
            victim.suspend()
    try:
        yield
    finally:
        if victim is not None:
            with suppress(psutil.Error):
                victim.resume()


@asynccontextmanager
async def _clock(stage: Stage, random: Random) -> AsyncIterator[None]:
    library = _faketime()
    if library is None:
        raise NotRun("libfaketime is not installed")
    wrong = random.choice(("+1h", "-1h"))
    process = await stage.start_extra(
        LD_PRELOAD=library, FAKETIME=wrong, FAKETIME_DONT_FAKE_MONOTONIC="1", DONT_FAKE_MONOTONIC="1"
    )
    note_faked(stage.folder, process.pid)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()


def _faketime() -> str | None:
    return next((path for path in FAKETIME if Path(path).exists()), None)


@asynccontextmanager
async def _token(stage: Stage, random: Random) -> AsyncIterator[None]:
    """One more worker, whose key ends in the middle of its work: what it holds is left to the others."""
    expires = datetime.now(UTC) + timedelta(seconds=_TOKEN_SECONDS + 2)
    token = jwt.encode({"role": "service_role", "exp": expires}, keys.JWT_SECRET, algorithm="HS256")
    process = await stage.start_extra(SUPABASE_SERVICE_ROLE_KEY=token)
    try:
        yield
        await anyio.sleep(_TOKEN_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL if random.random() < 0.5 else signal.SIGTERM)


# The socket


@asynccontextmanager
async def _closed(stage: Stage, random: Random, code: int) -> AsyncIterator[None]:
    await stage.faults.close(code)
    yield


@asynccontextmanager
async def _reset(stage: Stage, random: Random) -> AsyncIterator[None]:
    stage.faults.reset()
    yield


@asynccontextmanager
async def _ordered(
    stage: Stage, random: Random, order: Callable[[Stage], object], *, anew: bool = False
) -> AsyncIterator[None]:
    """An order to the proxy; `anew` where only a new socket feels it."""
    order(stage)
    if anew:
        await stage.faults.close(1012)
    try:
        yield
    finally:
        stage.faults.heal()


@asynccontextmanager
async def _deaf(stage: Stage, random: Random) -> AsyncIterator[None]:
    stage.faults.go_deaf("rows", "broadcasts")
    yield


@asynccontextmanager
async def _forged(stage: Stage, random: Random) -> AsyncIterator[None]:
    for event in ("wake", "due", "nonce", "system", "phx_error"):
        await stage.faults.inject(
            f'[null,null,"realtime:runtime:00000000-0000-0000-0000-000000000000","{event}",{{"nonce":"forged"}}]'
        )
    await stage.faults.inject(b"\x04\xff\xff\xff\x01forged")
    yield


def _broadcast_chaos(stage: Stage) -> None:
    # Some overtake others, some come twice, some not at all.
    stage.faults.delay("broadcasts", 0.3, times=10)
    stage.faults.double("broadcasts", times=10)
    stage.faults.delay("broadcasts", 0.05, times=10)
    stage.faults.drop("broadcasts", times=10)


def _blocked_text(stage: Stage) -> None:
    # Every tenth result of the chain, as a firewall that takes it for something else.
    stage.faults.block(403, holding='7,"half"')


def _foreign(stage: Stage) -> None:
    for body in ("", "null", "[]", '{"ok":true}', "<html>Sign in</html>"):
        stage.faults.answer(body, times=3, matching=EXCHANGE)
    stage.faults.answer("", 204, times=3, matching=EXCHANGE)


def _hints(stage: Stage) -> None:
    # What proves the paths still passes, so that nothing looks wrong.
    stage.faults.drop("rows", matching="consciousness_stream")
    stage.faults.drop("broadcasts", matching="wake")


# Servers


@asynccontextmanager
async def _gateway(stage: Stage, random: Random) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(stage.gateway.kill)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(stage.gateway.start)


@asynccontextmanager
async def _postgres(stage: Stage, random: Random, how: str) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(stage.server.stop if how == "stop" else stage.server.kill)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await stage.restart_postgres()


@asynccontextmanager
async def _terminated(stage: Stage, random: Random) -> AsyncIterator[None]:
    with suppress(*AWAY):
        async with stage.connection() as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname = $1",
                stage.database,
            )
    yield


@asynccontextmanager
async def _slot(stage: Stage, random: Random) -> AsyncIterator[None]:
    with suppress(*AWAY):
        async with stage.connection() as connection:
            # A slot in use cannot be dropped, and a temporary one goes with its connection.
            await connection.execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots where active"
            )
            for row in await connection.fetch("select slot_name from pg_replication_slots where not active"):
                with suppress(Exception):
                    await connection.execute("select pg_drop_replication_slot($1)", row["slot_name"])
    yield


@asynccontextmanager
async def _disk(stage: Stage, random: Random) -> AsyncIterator[None]:
    if not stage.is_small:
        raise NotRun("no small disk could be mounted: it needs root")
    filler = stage.folder / DISK / "filler"

    def fill() -> None:
        with filler.open("wb") as file:
            block = bytes(2**20)
            with suppress(OSError):
                while True:
                    file.write(block)
                    file.flush()

    await anyio.to_thread.run_sync(fill)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            filler.unlink()
            if not stage.server.is_running:
                await stage.restart_postgres()


def _proxy(name: str, order: Callable[[Stage], object], needs: str, *, anew: bool = False) -> Fault:
    return Fault(name, partial(_ordered, order=order, anew=anew), needs)


FAULTS = [
    Fault("worker SIGKILL", _killed),
    Fault("worker SIGSTOP", _frozen, seconds=(LEASE_SECONDS * 1.2, LEASE_SECONDS * 2)),
    Fault("clock off by an hour", _clock, seconds=(2, 4)),
    Fault("token expires", _token, seconds=(2, 4)),
    *(Fault(f"socket closed {code}", partial(_closed, code=code), "socket") for code in (1000, 1006, 1011, 1012)),
    Fault("socket reset", _reset, "socket"),
    _proxy("socket half open", lambda it: it.faults.freeze("sockets"), "socket"),
    _proxy("socket accepted, then closed", lambda it: it.faults.hang_up(1011), "socket", anew=True),
    _proxy("socket refused with 429", lambda it: it.faults.refuse("sockets", 429, times=2), "socket", anew=True),
    Fault("subscription gone deaf", _deaf, "socket"),
    _proxy("rate limit passed in silence", lambda it: it.faults.limit_rate(1, window_seconds=60), "socket"),
    _proxy("broadcasts dropped", lambda it: it.faults.drop("broadcasts"), "socket"),
    _proxy("rows dropped", lambda it: it.faults.drop("rows"), "socket"),
    _proxy("broadcasts doubled, delayed, reordered", _broadcast_chaos, "socket"),
    _proxy("hints lost, nonces not", _hints, "socket"),
    Fault("frames forged", _forged, "socket"),
    _proxy("REST cut before its effect", lambda it: it.faults.drop("requests", times=5), "rest"),
    _proxy("REST answer lost after its effect", lambda it: it.faults.lose_answer(times=5), "rest"),
    _proxy("REST doubled", lambda it: it.faults.double("requests", times=10, matching=EXCHANGE), "rest"),
    _proxy("REST 5xx", lambda it: it.faults.refuse("requests", 502, times=10), "rest"),
    _proxy("REST slow", lambda it: it.faults.delay("requests", 0.5, times=10), "rest"),
    _proxy("REST frozen", lambda it: it.faults.freeze("requests"), "rest"),
    _proxy("front refuses larger bodies", lambda it: it.faults.block(413, over_bytes=2_000, matching=EXCHANGE), "rest"),
    _proxy("front refuses a text", _blocked_text, "rest"),
    _proxy("front refuses everything", lambda it: it.faults.block(403, matching=EXCHANGE), "rest"),
    _proxy("front answers in its place", _foreign, "rest"),
    _proxy("front cuts answers", lambda it: it.faults.truncate("requests", times=10), "rest"),
    _proxy("front limits answers", lambda it: it.faults.limit_answers(4_000, matching=EXCHANGE), "rest"),
    _proxy("slow road", lambda it: it.faults.throttle(50_000), "rest"),
    Fault("gateway killed", _gateway),
    Fault("PostgreSQL stopped", partial(_postgres, how="stop")),
    Fault("PostgreSQL SIGKILL", partial(_postgres, how="kill")),
    Fault("connections terminated", _terminated),
    Fault("replication slot dropped", _slot, "socket"),
    Fault("disk full", _disk),
]  # fmt: skip
HUGE = "huge transaction"
NAMES = [*(fault.name for fault in FAULTS), HUGE]
