"""The beginning and the end of a worker that drains: due ticks first, in the end a look at what is left."""

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

import anyio

from runtime.agent.handler import Handler
from runtime.encoding.json import encode
from runtime.errors import StoreError
from runtime.store import Store
from runtime.worker.scheduler import tick_once

_log = logging.getLogger("runtime.worker.drain")
_ASK_SECONDS = 2.0


class Drain:
    """What a worker does that ends by itself once nothing is due.

    Attributes:
        left: how many deliveries were still due at the end; None while that is not known.
        next_due_seconds: how long after the end something is due again; None where nothing waits.
    """

    def __init__(self) -> None:
        self.left: int | None = None
        self.next_due_seconds: float | None = None
        self._names: list[str] = []
        self._versions: dict[str, str | None] = {}
        self._seconds_to_next_tick: Callable[[], float | None] = lambda: None

    async def begin(self, store: Store, worker: UUID, handlers: Sequence[Handler]) -> None:
        """Write the ticks that have come due, so that they are found like any other message.

        Raises:
            StoreError: they could not be written.
        """
        self._names = [handler.name for handler in handlers]
        self._versions = {handler.name: handler.version for handler in handlers if handler.pin}
        self._seconds_to_next_tick = await tick_once(store, worker, handlers)

    async def end(self, store: Store) -> None:
        """Ask what is left, and when the next of it comes due."""
        with anyio.move_on_after(_ASK_SECONDS):
            try:
                versions = encode(self._versions)
                found = await store.operate("stream_due", subscriptions=self._names, versions=versions)
            except StoreError as error:
                _log.warning("what is left could not be asked: %s", error)
                return
            self.left = found["due"]
            moments = [found["next_due_seconds"], self._seconds_to_next_tick()]
            known = [max(0.0, seconds) for seconds in moments if seconds is not None]
            self.next_due_seconds = 0.0 if self.left else min(known, default=None)
