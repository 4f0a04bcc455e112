"""The checks of the whole way: a socket, a nonce by each push path, and one row through a handler."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args
from uuid import uuid4

import anyio
import httpx

from runtime.agent.agent import Agent
from runtime.cli.checks.database import Facts, plugin_cure
from runtime.cli.checks.finding import Finding, fault, ok, skipped, warning
from runtime.client.factories import open_wakeups
from runtime.connection.pooler import is_transaction_pooled
from runtime.errors import SettingsError, StoreError
from runtime.extras import needing
from runtime.local.ports import port_is_free
from runtime.message import Draft
from runtime.settings import Settings
from runtime.store import Store
from runtime.wakeups import Path
from runtime.wakeups.effects import Close, RefusalKind
from runtime.wakeups.realtime import RealtimeWakeups
from runtime.worker.worker import Worker

KEY = "runtime.doctor"
_AGENT = "runtime-doctor"
_SUBSCRIPTION = f"{_AGENT}.examine"
# A server that was just started reads the log only after some seconds.
_NONCE_SECONDS = 15.0
_PATHS_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_LIVE_SECONDS = 10.0
# A machine that is busy is no fault: only what is lost takes so long.
_ROUND_SECONDS = 45.0

_REFUSAL_CURES = {
    RefusalKind.RATE: "Wait a minute; if it stays so, raise the project's Realtime limits or connect fewer clients.",
    RefusalKind.TOKEN: "Check the key: it must be a service_role or sb_secret_… key of this project, and not expired.",
    RefusalKind.PRIVATE: "See the findings about policies and the partition. Agents go on by postgres_changes alone.",
    RefusalKind.OPERATOR: "See the findings about policies and the partition, and the project's Realtime settings.",
    RefusalKind.RETRY: "Look at the other findings first. Is Realtime switched on and running? Agents poll meanwhile.",
}
_PATH_CURES: dict[Path, str] = {
    "broadcast": "Look at the findings about policies and the partition of realtime.messages.",
    "postgres_changes": "Look at the findings about publication and grants; restart Realtime if both are well.",
    "notify": "",
}


@dataclass
class _Observed:
    """The events of one socket, with their times."""

    began: float = field(default_factory=time.monotonic)
    proved_at: dict[Path, float] = field(default_factory=dict)
    lost_why: dict[Path, str] = field(default_factory=dict)
    sent_at: dict[str, float] = field(default_factory=dict)
    joined_after: float | None = None
    nonces: list[str] = field(default_factory=list)
    changed: anyio.Event = field(default_factory=anyio.Event)

    def wake(self, why: str, message: int | None = None) -> None:
        """Ignore it: only nonces prove a path here."""

    def gap(self, path: Path, why: str) -> None:
        """Ignore it: only nonces prove a path here."""

    def live(self, path: Path) -> None:
        self._change()

    def lost(self, path: Path, why: str) -> None:
        self.lost_why.setdefault(path, why)
        self._change()

    def prove(self, nonce: str) -> None:
        self.nonces.append(nonce)
        self._change()

    def note_proofs(self, counts: Mapping[str, int]) -> None:
        """Note when a nonce first came back by each path."""
        for path in ("broadcast", "postgres_changes"):
            if counts.get(f"proofs by {path}"):
                self.proved_at.setdefault(path, time.monotonic() - self.began)

    def _change(self) -> None:
        if self.joined_after is None:
            self.joined_after = time.monotonic() - self.began
        self.changed.set()


async def check_paths(settings: Settings, store: Store, facts: Facts) -> list[Finding]:
    """Open a socket as a worker does, and prove each push path with a nonce through the database.

    Args:
        settings: where the project is, and which paths are used.
        store: sends the nonces.
        facts: of the database, for the cure of a path that does not deliver.
    """
    wanted = [
        path
        for path, is_on in (
            ("broadcast", settings.broadcast),
            ("postgres_changes", settings.postgres_changes),
        )
        if is_on
    ]
    if settings.supabase_url is None or settings.supabase_key is None or not wanted:
        return [skipped("socket", "Realtime is not used.")]
    hasty = settings.model_copy(
        update={"nonce_deadline_seconds": _NONCE_SECONDS, "database_url": None, "webhook": None}
    )
    worker, heard, ended = uuid4(), _Observed(), list[Close]()
    [source] = open_wakeups(hasty, worker, [KEY])
    assert isinstance(source, RealtimeWakeups)

    async def listen() -> None:
        ended.append(await source.listen_once(heard))
        heard.changed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        with anyio.move_on_after(_PATHS_SECONDS):
            while not ended and not all(path in heard.proved_at or path in heard.lost_why for path in wanted):
                # A proof raises a counter without an event, so the counter is polled.
                with anyio.move_on_after(_LOOK_SECONDS):
                    await heard.changed.wait()
                heard.changed = anyio.Event()
                heard.note_proofs(source.counts)
                while heard.nonces:
                    await store.operate("stream_beat", worker=str(worker), nonce=heard.nonces.pop())
        tasks.cancel_scope.cancel()
    if heard.joined_after is None:
        close = ended[0] if ended else Close("the server does not answer")
        text = f"The socket does not come about: {close.why}."
        return [fault("socket", text, _REFUSAL_CURES[close.refusal])]
    return [
        ok(
            "socket",
            f"The socket is open and joined after {_ms(heard.joined_after)}.",
            seconds=heard.joined_after,
        ),
        *(_path(path, heard, facts) for path in wanted),  # type: ignore[arg-type]
    ]


def _path(path: Path, heard: _Observed, facts: Facts) -> Finding:
    if path in heard.proved_at:
        seconds = heard.proved_at[path]
        return ok(path, f"A nonce came back by {path}, {_ms(seconds)} after the beginning.", seconds=seconds)
    why = heard.lost_why.get(path, "nothing came by it in time")
    cure = plugin_cure(facts) if path == "postgres_changes" else None
    return fault(path, f"{path} does not deliver: {why}.", cure or _PATH_CURES[path])


async def check_round(settings: Settings, store: Store) -> Finding:
    """Send one row, have a handler run on it and answer, and time each leg."""
    agent, began = Agent(_AGENT), anyio.Event()
    at: dict[str, float] = {}
    mark = f"{KEY}.{uuid4().hex[:12]}"
    stage = "subscribing"

    @agent.on(mark, emits=f"{mark}.done")
    async def examine(value: Any) -> Any:
        """Note the time, and answer."""
        at["handled"] = time.monotonic()
        began.set()
        return value

    worker = Worker([agent], settings.model_copy(update={"webhook": None}))
    try:
        with anyio.fail_after(_ROUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(worker.run)
                await _until_settled(store)
                await _until_live(worker, settings)
                stage, at["began"] = "sending", time.monotonic()
                await store.send([Draft(mark, {"from": "runtime doctor"}, agent=_AGENT, expires_in=300)])
                stage, at["stored"] = "waiting for the handler", time.monotonic()
                await began.wait()
                stage = "waiting for the answer"
                while not await store.read(f"{mark}.done", limit=1):  # noqa: ASYNC110 - it is elsewhere
                    await anyio.sleep(0.005)
                at["answered"] = time.monotonic()
                worker.stop()
    except TimeoutError:
        text = f"The row did not come round: {_ROUND_SECONDS:.0f} s were over while {stage}."
        return fault("round trip", text, await _round_cure(store, stage))
    finally:
        await _tidy(store)
    legs = {
        "insert": at["stored"] - at["began"],
        "insert to handler": at["handled"] - at["began"],
        "handler to answer": at["answered"] - at["handled"],
    }
    ways = sorted(path for path in get_args(Path) if worker.counts.get(f"wake-ups by {path}"))
    times = ", ".join(f"{name} {_ms(seconds)}" for name, seconds in legs.items())
    return ok("round trip", f"One row went all the way round: {times}.", legs=legs, woken_by=ways)


async def _until_live(worker: Worker, settings: Settings) -> None:
    """Give the push paths a moment; without them the row comes round by polling."""
    if settings.supabase_url is None or not (settings.broadcast or settings.postgres_changes):
        return
    with anyio.move_on_after(_LIVE_SECONDS):
        while worker.state != "live":  # noqa: ASYNC110 - its dispatcher lives on another loop
            await anyio.sleep(0.02)


async def _until_settled(store: Store) -> None:
    while True:
        stats = await store.operate("stream_stats")
        if any(each["name"] == _SUBSCRIPTION and each["settled"] for each in stats["subscriptions"]):
            return
        await anyio.sleep(0.05)


async def _round_cure(store: Store, stage: str) -> str:
    if stage == "subscribing":
        stats = await store.operate("stream_stats")
        if oldest := stats["oldest_transaction_seconds"]:
            return (
                f"A writing transaction has been open for {oldest:.0f} s somewhere in this database cluster: end it "
                "(pg_stat_activity shows whose it is)."
            )
    return "Look at the other findings first; `runtime status` shows what waits."


async def _tidy(store: Store) -> None:
    """Remove the examination's own subscription; its message expires by itself."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(5):
        try:
            await store.operate("stream_remove", subscription=_SUBSCRIPTION, dry_run=False)
        except StoreError:
            # It was never made, or another `runtime doctor` uses it, and removes it.
            return


async def check_pooler(settings: Settings) -> Finding:
    """Check whether DATABASE_URL leads to a transaction pooler."""
    if settings.database_url is None:
        return skipped("pooler", "DATABASE_URL is not set: the stream is reached over REST.")
    url = settings.database_url.get_secret_value()
    try:
        is_pooled = await is_transaction_pooled(url, connect_seconds=settings.request_seconds)
    except Exception as error:  # noqa: BLE001 - whatever the driver says, it is told
        return fault(
            "pooler", f"The database cannot be reached: {type(error).__name__}.", "Check DATABASE_URL."
        )
    if is_pooled:
        return warning(
            "pooler",
            "DATABASE_URL leads through a transaction pooler: no NOTIFY, and no prepared statements.",
            "Use the direct connection or the session pooler (port 5432).",
            mode="transaction",
        )
    return ok("pooler", "DATABASE_URL is a connection of one's own, so NOTIFY is heard.", mode="session")


async def check_webhook(settings: Settings, facts: Facts | None) -> Finding:
    """Check that the listener of RUNTIME_WEBHOOK knows the secret, and that the database posts to it."""
    if settings.webhook is None:
        return skipped("webhook", "RUNTIME_WEBHOOK is not set.")
    with needing("RUNTIME_WEBHOOK", "serve"):
        from runtime.wakeups.database_webhook import WebhookWakeups

    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
    try:
        webhook = WebhookWakeups(settings.webhook, secret, patterns=[])
    except SettingsError as error:
        return fault("webhook", "The webhook cannot be started.", str(error))
    if facts is not None and not facts["webhooks"]:
        return fault(
            "webhook",
            "The database posts nothing: no webhook is on consciousness_stream.",
            "Dashboard, Integrations, Database Webhooks: one for INSERT on public.consciousness_stream, to this "
            "worker's address, with the header x-webhook-secret.",
        )
    if port_is_free(webhook.port):
        return warning(
            "webhook", f"Nobody listens at {settings.webhook} yet.", "Start `runtime run … --webhook`."
        )
    body = {
        "type": "INSERT",
        "schema": "public",
        "table": "consciousness_stream",
        "record": {"id": 0, "key": KEY},
    }
    host = "127.0.0.1" if webhook.host in ("0.0.0.0", "::") else webhook.host
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            answer = await client.post(
                f"http://{host}:{webhook.port}/", json=body, headers={"x-webhook-secret": secret}
            )
    except httpx.HTTPError as error:
        return fault(
            "webhook", f"{settings.webhook} does not answer: {type(error).__name__}.", "Restart the worker."
        )
    if answer.status_code != 202:
        return fault(
            "webhook",
            f"Who listens at {settings.webhook} answers {answer.status_code}.",
            "RUNTIME_WEBHOOK_SECRET must be the same for the worker and here."
            if answer.status_code == 401
            else "Another program has this port: choose another.",
        )
    return ok("webhook", f"A worker listens at {settings.webhook} and knows the secret.")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
