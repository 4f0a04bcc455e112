"""Wake-ups for a client: they tell it when to look, and it sends the nonces that prove their paths."""

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

import anyio

from runtime.errors import StoreError
from runtime.store import Store
from runtime.wakeups import Path, Reachability, Wakeups

_log = logging.getLogger("runtime.client.wakeup_inbox")


class WakeupInbox:
    """The listener of a client's wake-ups.

    Args:
        store: sends nonces through the database.
        identity: the topic and channel of the wake-ups.
        sources: where they come from.
        look: called whenever there may be something to read; it returns at once.

    Attributes:
        reach: which push paths are live.
    """

    def __init__(
        self, store: Store, identity: UUID, sources: Sequence[Wakeups], look: Callable[[], object]
    ) -> None:
        self.reach = Reachability(frozenset(path for source in sources for path in source.paths))
        self._store = store
        self._identity = identity
        self._sources = sources
        self._look = look
        self._nonces: list[str] = []
        self._has_nonces = anyio.Event()

    async def run(self) -> None:
        """Listen until cancelled."""
        async with anyio.create_task_group() as tasks:
            for source in self._sources:
                tasks.start_soon(source.run, self)
            # A task of its own: nonces are sent also while the client is busy with a message.
            while True:
                await self._has_nonces.wait()
                self._has_nonces = anyio.Event()
                while self._nonces:
                    await self._send(self._nonces.pop())

    async def _send(self, nonce: str) -> None:
        try:
            await self._store.operate("stream_beat", worker=str(self._identity), nonce=nonce)
        except StoreError as error:
            # The nonce's deadline passes, and the path counts as lost: the client polls.
            _log.debug("a nonce could not be sent: %s", error)

    def wake(self, why: str, message: int | None = None) -> None:
        """Look now."""
        self._look()

    def live(self, path: Path) -> None:
        """Look once, then wait for wake-ups."""
        self.reach.live(path)
        self._look()

    def gap(self, path: Path, why: str) -> None:
        """Look now."""
        self._look()

    def lost(self, path: Path, why: str) -> None:
        """Poll."""
        self.reach.lost(path)
        self._look()

    def prove(self, nonce: str) -> None:
        """Send the nonce through the database."""
        self._nonces.append(nonce)
        self._has_nonces.set()
