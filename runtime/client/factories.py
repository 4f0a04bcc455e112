"""The store, the wake-ups and the transports that the settings name."""

import logging
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine, Sequence
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import SecretStr

from runtime.broadcast import Broadcast, topic_of
from runtime.client.broadcaster import NO_TRANSPORT, Broadcaster, NotifyTransport, RealtimeTransport
from runtime.connection.environment import non_blank
from runtime.connection.local_stack import elsewhere
from runtime.connection.project import named
from runtime.errors import RuntimeFault, SettingsError
from runtime.extras import needing
from runtime.keys import matches
from runtime.settings import Settings
from runtime.store import Store
from runtime.wakeups import Path, Wakeups

if TYPE_CHECKING:
    from runtime.client.telemetry import Telemetry
    from runtime.store.postgres import PostgresStore
    from runtime.wakeups.client_channel import OwnClient
    from runtime.wakeups.realtime_socket import Endpoint
    from supabase import AsyncClient

# The most transactions of handlers at once, in one process.
_TRANSACTIONS = 8
_log = logging.getLogger("runtime.client.factories")
_NOWHERE = (
    "Nothing says where the stream is. Set SUPABASE_URL and SUPABASE_SECRET_KEY (or SUPABASE_SERVICE_ROLE_KEY), or "
    "DATABASE_URL; or start a stack on this machine: `runtime local start`."
)


async def open_store(settings: Settings, client: "AsyncClient | None" = None) -> Store:
    """Return the direct store if there is a DATABASE_URL, else the one over the REST API.

    Args:
        settings: where the stream is.
        client: the user's own supabase client; it overrides the settings.

    Raises:
        SettingsError: nothing says where the stream is.
    """
    if client is not None:
        _check_client(client)
    elif (direct := _direct_store(settings)) is not None:
        return direct
    from runtime.store.supabase import SupabaseStore

    if client is not None:
        return SupabaseStore(client, request_seconds=settings.request_seconds)
    if settings.supabase_url is None or settings.supabase_key is None:
        raise SettingsError(" ".join(filter(None, (_what_is_missing(settings), settings.origin.hint))))
    return await SupabaseStore.connect(
        settings.supabase_url,
        settings.supabase_key.get_secret_value(),
        request_seconds=settings.request_seconds,
        source=settings.origin.url and named(settings.origin.url),
    )


def open_transactions(settings: Settings) -> "PostgresStore | None":
    """Return a direct store with connections for the transactions of handlers; None without a DATABASE_URL."""
    return _direct_store(settings, connections=_TRANSACTIONS)


def _direct_store(settings: Settings, **options: int) -> "PostgresStore | None":
    if settings.database_url is None:
        return None
    from runtime.store.postgres import PostgresStore

    return PostgresStore(
        settings.database_url.get_secret_value(),
        request_seconds=settings.request_seconds,
        source=settings.origin.database and named(settings.origin.database),
        **options,
    )


def _what_is_missing(settings: Settings) -> str:
    """Say which part of the way to the stream is not set."""
    origin = settings.origin
    if settings.supabase_url is not None:
        keys = "SUPABASE_SECRET_KEY (or SUPABASE_SERVICE_ROLE_KEY)"
        if origin.url is None:
            return f"supabase_url is given in code, its key is not: give supabase_key too, or set {keys}."
        return f"{named(origin.url)} is set, its key is not: set {keys} there."
    if origin.key is not None:
        return f"{named(origin.key)} is set, SUPABASE_URL is not: set it there. {_NOWHERE}{elsewhere()}"
    return _NOWHERE + elsewhere()


def _check_client(client: object) -> None:
    """Raise a SettingsError for anything but an async client, with the line that makes one."""
    from supabase import AsyncClient, Client

    if isinstance(client, AsyncClient):
        return
    if isawaitable(client):
        if iscoroutine(client):
            client.close()
        raise SettingsError("client=… is not awaited: client=await supabase.create_async_client(url, key).")
    what = (
        "a client without async"
        if isinstance(client, Client)
        else f"{type(client).__name__}, no client of supabase"
    )
    raise SettingsError(f"client=… is {what}: make one by `await supabase.create_async_client(url, key)`.")


async def compare_places(settings: Settings, store: Store) -> None:
    """Log an error if SUPABASE_URL and DATABASE_URL lead to two databases; one that does not answer is not compared.

    Args:
        settings: where the stream is.
        store: the direct store.
    """
    url, key = settings.supabase_url, settings.supabase_key
    if settings.database_url is None or url is None or key is None:
        return
    from runtime.store.supabase import SupabaseStore

    try:
        other = await SupabaseStore.connect(
            url, key.get_secret_value(), request_seconds=settings.request_seconds
        )
        try:
            found = [await each.call("stream_version", {}) for each in (store, other)]
        finally:
            await other.close()
    except RuntimeFault as error:
        _log.debug("SUPABASE_URL and DATABASE_URL were not compared: %s", error)
        return
    ours, theirs = (each.get("incarnation") if isinstance(each, dict) else None for each in found)
    if ours is not None and theirs is not None and ours != theirs:
        _log.error(
            "SUPABASE_URL (%s) and DATABASE_URL (%s) lead to two databases: messages are taken from the second, and "
            "wake-ups come from the first. Take both from the same project.",
            other.place, store.place,
        )  # fmt: skip


def settings_of(client: "AsyncClient", settings: Settings) -> Settings:
    """Return the settings with the place of the user's own client: wake-ups must come from there too.

    Raises:
        SettingsError: it is no async client of supabase.
    """
    _check_client(client)
    return settings.with_stream(
        "the client",
        supabase_url=str(client.supabase_url).rstrip("/"),
        supabase_key=SecretStr(client.supabase_key),
        database_url=None,
    )


def open_wakeups(
    settings: Settings, worker: UUID, patterns: Sequence[str], client: "OwnClient | None" = None
) -> list[Wakeups]:
    """Return every source of wake-ups that the settings switch on, for a worker with these patterns.

    Args:
        settings: where the stream is, and which sources are on.
        worker: the worker to be woken.
        patterns: those of its handlers.
        client: a client of the user's own, whose connection to Realtime is used.
    """
    sources: list[Wakeups] = []
    if settings.supabase_url and settings.supabase_key and (settings.broadcast or settings.postgres_changes):
        from runtime.wakeups.realtime import RealtimeWakeups

        sources.append(
            RealtimeWakeups(
                settings.supabase_url,
                settings.supabase_key.get_secret_value(),
                worker,
                keys=patterns,
                settings=settings,
                endpoint=_endpoint_of(client, settings.supabase_url),
            )
        )
    if settings.database_url and settings.notify:
        from runtime.wakeups.notify import NotifyWakeups

        sources.append(NotifyWakeups(settings.database_url.get_secret_value(), worker, settings=settings))
    if settings.webhook:
        with needing("RUNTIME_WEBHOOK", "serve"):
            from runtime.wakeups.database_webhook import WebhookWakeups

        sources.append(
            WebhookWakeups(settings.webhook, non_blank(settings.webhook_secret), patterns=patterns)
        )
    return sources


def own_client(client: "AsyncClient | None") -> "OwnClient | None":
    """Return the user's own client, if there is one, as it is used on the running loop."""
    if client is None:
        return None
    from runtime.wakeups.client_channel import OwnClient

    return OwnClient(client.realtime, get_running_loop())


def _endpoint_of(client: "OwnClient | None", url: str) -> "Endpoint | None":
    """Return the Realtime server as the user's own client reaches it, if there is one."""
    if client is None:
        return None
    from runtime.wakeups.client_channel import ClientEndpoint

    return ClientEndpoint(client, urlsplit(url).netloc.rpartition("@")[2])


def open_broadcaster(settings: Settings, store: Store) -> Broadcaster | None:
    """Return a broadcaster: over Realtime if there is a project, else by NOTIFY, else None."""
    if settings.supabase_url and settings.supabase_key and settings.broadcast:
        key = settings.supabase_key.get_secret_value()
        return Broadcaster(
            RealtimeTransport(settings.supabase_url, key, settings.request_seconds),
            settings.broadcast_gather_seconds,
        )
    if settings.database_url and settings.notify:
        return Broadcaster(NotifyTransport(store), settings.broadcast_gather_seconds)
    return None


def open_broadcasts(
    settings: Settings,
    pattern: str,
    take: Callable[[Broadcast[Any]], None],
    client: "OwnClient | None" = None,
) -> Callable[[], Coroutine[Any, Any, None]]:
    """Return a function that receives broadcasts until it is cancelled.

    Args:
        settings: where the stream is.
        pattern: broadcasts under other keys are left out.
        take: called with each broadcast; it returns at once.
        client: a client of the user's own, whose connection to Realtime is used.

    Raises:
        SettingsError: nothing carries broadcasts.
    """

    def take_frame(payload: object) -> None:
        for broadcast in Broadcast.all_from_wire(payload):
            if matches(pattern, broadcast.key):
                take(broadcast)

    if (receive := open_receiver(settings, topic_of(pattern), take_frame, client)) is None:
        raise SettingsError(NO_TRANSPORT)
    return receive


def open_receiver(
    settings: Settings,
    topic: str,
    take_frame: Callable[[object], None],
    client: "OwnClient | None" = None,
) -> Callable[[], Coroutine[Any, Any, None]] | None:
    """Return a function that receives what is sent to a topic until it is cancelled; None if nothing carries it.

    Args:
        settings: where the stream is.
        topic: the topic, over Realtime. NOTIFY has one channel for everything.
        take_frame: called with each frame's payload; it returns at once.
        client: a client of the user's own, whose connection to Realtime is used.
    """
    if settings.supabase_url and settings.supabase_key and settings.broadcast:
        from runtime.wakeups.broadcasts import RealtimeBroadcasts

        return RealtimeBroadcasts(
            settings.supabase_url,
            settings.supabase_key.get_secret_value(),
            topic,
            settings=settings,
            take=take_frame,
            endpoint=_endpoint_of(client, settings.supabase_url),
        ).receive
    if settings.database_url and settings.notify:
        from runtime.wakeups.broadcasts import NotifyBroadcasts

        url = settings.database_url.get_secret_value()
        return NotifyBroadcasts(url, settings=settings, take=take_frame).receive
    return None


def reachable_by(wakeups: Sequence[Wakeups]) -> tuple[Literal["realtime", "notify"], ...]:
    """Return the ways in which the database can announce work to a worker with these wake-ups."""
    paths = {path for source in wakeups for path in source.paths}
    ways: dict[Path, Literal["realtime", "notify"]] = {"broadcast": "realtime", "notify": "notify"}
    return tuple(way for path, way in ways.items() if path in paths)


def open_telemetry(settings: Settings) -> "Telemetry | None":
    """Return the maker of spans and metrics, or None, without loading its library, if the settings do not ask for it.

    Raises:
        SettingsError: OpenTelemetry is asked for and not installed.
    """
    if not settings.telemetry:
        return None
    with needing("RUNTIME_TELEMETRY", "otel"):
        from runtime.client.telemetry import Telemetry
    return Telemetry()
