"""How is what others say heard where there is a direct connection alone? By LISTEN, over a connection of its own."""

import logging
import time
from collections.abc import Callable
from random import Random

import anyio

from runtime.addresses import DatabaseAddress
from runtime.errors import InvalidPayload
from runtime.retry import backoff_seconds
from runtime.settings import Settings
from runtime.values import decode
from runtime.wakeups.channels import CONNECT_SECONDS, FAULTS, is_unheard, listening
from runtime.wakeups.outage import Outage

_log = logging.getLogger("runtime.wakeups")
CHANNEL = "runtime_said"
_POOLED = "a transaction pooler stands in between, and LISTEN is not heard through one"


class NotifyHearing:
    """What is said, by NOTIFY.

    Args:
        url: a `postgresql://` URL.
        settings: the intervals.
        take: told of the payload of each notification; it returns at once.
    """

    def __init__(self, url: str, *, settings: Settings, take: Callable[[object], None]) -> None:
        self._address = DatabaseAddress.parse(url)
        self._check_seconds = settings.heartbeat_seconds
        self._take = take
        self._random = Random()
        self._outage = Outage()

    async def hear(self) -> None:
        """Listen for ever, connecting anew as often as needed, until cancelled."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                why = await self._hear_once()
            except FAULTS as error:
                why = f"no connection ({type(error).__name__})"
            failures = 1 if time.monotonic() - began > 3 * CONNECT_SECONDS else failures + 1
            pause = backoff_seconds(failures, first=0.2, cap=10.0, random=self._random)
            if why == _POOLED:
                pause = 60.0
            level = self._outage.level("pooled" if why == _POOLED else "no connection", logging.WARNING)
            _log.log(
                level, "what is said at %s is not heard: %s; trying again in %.1f s",
                self._address.place, why, pause,
            )  # fmt: skip
            await anyio.sleep(pause)

    async def _hear_once(self) -> str:
        """Live through one connection and return why it ended."""
        if await is_unheard(self._address):
            return _POOLED
        ended = anyio.Event()
        async with listening(self._address, (CHANNEL,), self._receive, ended.set, who="said") as connection:
            self._outage.over()
            _log.info("what is said is heard at %s", self._address.place)
            while not ended.is_set():
                with anyio.move_on_after(self._check_seconds):
                    await ended.wait()
                if not ended.is_set():
                    await connection.execute("select 1", timeout=CONNECT_SECONDS)
            return "the connection was closed"

    def _receive(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        try:
            self._take(decode(str(payload)))
        except InvalidPayload:
            _log.debug("a notification was no JSON")
