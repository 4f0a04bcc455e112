"""Statuses: where deliveries are, in the words of their handlers, stored in the background."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress

import anyio

from runtime.backoff import Outage
from runtime.encoding.json import encode
from runtime.errors import StoreError
from runtime.store import Delivery, Store

_log = logging.getLogger("runtime.handlers")
_PACE_SECONDS = 1.0
_MAX_CHARACTERS = 200
# More of them at once are stored in parts.
_MAX_STATUSES = 1_000


class HandlerStatuses:
    """Stores the last status of each delivery, at most once a second for all of them. Made on the loop of the store.

    Args:
        store: where messages live.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._latest: dict[tuple[int, int], dict[str, object]] = {}
        self._is_called = False
        self._called = anyio.Event()
        self._outage = Outage()

    def tell(self, deliveries: Sequence[Delivery], text: str) -> None:
        """Show where these deliveries are. From any thread; returns at once."""
        kept = str(text)[:_MAX_CHARACTERS].encode("utf-8", "replace").decode()
        kept = kept.replace("\0", "\N{REPLACEMENT CHARACTER}")
        with self._lock:
            for each in deliveries:
                message, subscription = each.place
                self._latest[each.place] = {
                    "message": message, "subscription": subscription, "lease": each.lease, "text": kept,
                }  # fmt: skip
            is_called, self._is_called = self._is_called, True
        if not is_called:
            # The loop may have ended.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    async def run(self) -> None:
        """Store what is told, until cancelled."""
        while True:
            await self._called.wait()
            await self.flush()
            await anyio.sleep(_PACE_SECONDS)

    async def flush(self) -> None:
        """Store what was told and is not stored yet; what cannot be stored is dropped."""
        with self._lock:
            self._called = anyio.Event()
            self._is_called = False
            latest, self._latest = [*self._latest.values()], {}
        for start in range(0, len(latest), _MAX_STATUSES):
            part = encode(latest[start : start + _MAX_STATUSES])
            try:
                await self._store.operate("stream_status", statuses=part)
            except StoreError as error:
                level = self._outage.level(error.nature, logging.WARNING)
                _log.log(level, "the statuses of handlers cannot be stored: %s", error)
            else:
                self._outage.over()

    def _wake(self) -> None:
        self._called.set()
