"""Broadcasts received over Realtime or by NOTIFY.

Each path has a connection of its own, not the one that carries wake-ups: a flood of broadcasts may close its channel,
and must not cost wake-ups.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import anyio

from runtime.backoff import Outage
from runtime.broadcast import EVENT
from runtime.connection.addresses import DatabaseAddress
from runtime.encoding.json import decode
from runtime.errors import InvalidPayload
from runtime.settings import Settings
from runtime.wakeups import Path
from runtime.wakeups.effects import Effect, Heard, Joined
from runtime.wakeups.listen import CLOSED, CONNECT_SECONDS, listen_for_ever, listening
from runtime.wakeups.phoenix import PhoenixChannel
from runtime.wakeups.realtime import Pauses, RealtimeWakeups
from runtime.wakeups.realtime_socket import Endpoint

_log = logging.getLogger("runtime.wakeups")
CHANNEL = "runtime_broadcast"
_POOLED_PAUSE_SECONDS = 60.0


@dataclass
class BroadcastChannel(PhoenixChannel):
    """One private channel of broadcasts, on one fresh socket.

    Args:
        broadcast_topic: the topic to listen to.
    """

    broadcast_topic: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.topic = f"realtime:{self.broadcast_topic}"

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "private": True}

    def _reply(self, payload: dict[str, Any], now: float) -> list[Effect]:
        effects = super()._reply(payload, now)
        return [*effects, Joined()] if self._is_joined else effects

    def _broadcast(self, event: object, payload: object, now: float) -> list[Effect]:
        if event == EVENT:
            return [Heard(payload)]
        self.counts["unknown"] += 1
        return []


class RealtimeBroadcasts(RealtimeWakeups):
    """Broadcasts over Supabase Realtime.

    Args:
        url: the project's URL, as in SUPABASE_URL.
        key: the service_role JWT or an `sb_secret_…` key.
        topic: the topic to listen to.
        settings: the intervals.
        take: told of the payload of each broadcast; it returns at once.
        pauses: how long to wait before the next connection.
        endpoint: the server, if it is reached in another way than by a socket of the runtime's own.
    """

    paths: tuple[Path, ...] = ()

    def __init__(
        self,
        url: str,
        key: str,
        topic: str,
        *,
        settings: Settings,
        take: Callable[[object], None],
        pauses: Pauses | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        super().__init__(url, key, uuid4(), keys=(), settings=settings, pauses=pauses, endpoint=endpoint)
        self.paths = ()
        self._topic = topic
        self._take = take

    async def receive(self) -> None:
        """Listen for ever, connecting anew as often as needed, until cancelled."""
        await self._keep_open(self._take_effect)

    def _channel(self) -> PhoenixChannel:
        return BroadcastChannel(self._worker, (), (), self._timings, broadcast_topic=self._topic)

    def _take_effect(self, effect: Effect) -> None:
        if isinstance(effect, Heard):
            self._take(effect.payload)
        elif isinstance(effect, Joined):
            self._outage.over()
            _log.info("broadcasts are received at %s", self._place)


class NotifyBroadcasts:
    """Broadcasts by NOTIFY.

    Args:
        url: a `postgresql://` URL.
        settings: the intervals.
        take: told of the payload of each notification; it returns at once.
    """

    def __init__(self, url: str, *, settings: Settings, take: Callable[[object], None]) -> None:
        self._address = DatabaseAddress.parse(url)
        self._check_seconds = settings.heartbeat_seconds
        self._take = take
        self._outage = Outage(steady_seconds=3 * CONNECT_SECONDS)

    async def receive(self) -> None:
        """Listen for ever, connecting anew as often as needed, until cancelled."""

        def lost(kind: str, why: str, pause: float) -> None:
            _log.log(
                self._outage.level(kind, logging.WARNING),
                "broadcasts at %s are not received: %s; trying again in %.1f s",
                self._address.place, why, pause,
            )  # fmt: skip

        await listen_for_ever(
            self._address, self._receive_once, lost, self._outage, pooled_seconds=_POOLED_PAUSE_SECONDS
        )

    async def _receive_once(self) -> str:
        """Listen on one connection and return why it ended."""
        ended = anyio.Event()
        async with listening(
            self._address, (CHANNEL,), self._receive, ended.set, who="broadcasts"
        ) as connection:
            self._outage.over()
            _log.info("broadcasts are received at %s", self._address.place)
            while not ended.is_set():
                with anyio.move_on_after(self._check_seconds):
                    await ended.wait()
                if not ended.is_set():
                    await connection.execute("select 1", timeout=CONNECT_SECONDS)
            return CLOSED

    def _receive(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        try:
            self._take(decode(str(payload)))
        except InvalidPayload:
            _log.debug("a notification was no JSON")
