"""How is what others say heard over Realtime? On a private channel of its own; it is no hint, it is the thing itself.

Its socket is not the one that carries wake-ups: a flood of what is said may close its channel, and must not cost those.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from runtime.said import EVENT
from runtime.settings import Settings
from runtime.wakeups import Listener, Path
from runtime.wakeups.phoenix import Channel, Effect, Heard, Joined
from runtime.wakeups.realtime import Pauses, RealtimeWakeups

_log = logging.getLogger("runtime.wakeups")


@dataclass
class SaidChannel(Channel):
    """One private channel that hears what is said, on one fresh socket.

    Args:
        said_topic: the topic to listen to.
    """

    said_topic: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.topic = f"realtime:{self.said_topic}"

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


class RealtimeHearing(RealtimeWakeups):
    """What is said, over Supabase Realtime.

    Args:
        url: the project's URL, as in SUPABASE_URL.
        key: the service_role JWT or an `sb_secret_…` key.
        topic: the topic to listen to.
        settings: the intervals.
        take: told of the payload of each broadcast; it returns at once.
        pauses: how long to wait before the next connection.
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
    ) -> None:
        super().__init__(url, key, uuid4(), keys=(), settings=settings, pauses=pauses)
        self.paths = ()
        self._topic = topic
        self._take = take

    async def hear(self) -> None:
        """Listen for ever, connecting anew as often as needed, until cancelled."""
        await self.run(_Nobody())

    def _channel(self) -> Channel:
        return SaidChannel(self._worker, (), (), self._timings, said_topic=self._topic)

    def _pass_on(self, effect: Effect, listener: Listener) -> None:
        if isinstance(effect, Heard):
            self._take(effect.payload)
        elif isinstance(effect, Joined):
            self._outage.over()
            _log.info("what is said is heard at %s", self._place)


class _Nobody:
    """There is nobody to wake."""

    def wake(self, why: str, message: int | None = None) -> None: ...

    def live(self, path: Path) -> None: ...

    def gap(self, path: Path, why: str) -> None: ...

    def lost(self, path: Path, why: str) -> None: ...

    def prove(self, nonce: str) -> None: ...
