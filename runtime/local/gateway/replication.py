"""A stream of committed changes, through a publication and temporary slots."""

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import anyio

from runtime.local.gateway.pgoutput import Change, Decoder, PgOutputError
from runtime.local.gateway.walsender import Address, Walsender, WalsenderError

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


class LogStream:
    """One publication as a stream of changes, in commit order.

    The slot is temporary: what commits while the connection is down is never heard, as with the real server.

    Args:
        address: the server; the role must have REPLICATION.
        publication: its name; it must exist when `prepare` returns.
        handle: gets the changes that arrived together. While it runs nothing more is read.
        prepare: called before each connection, to make what the stream needs.
    """

    def __init__(
        self,
        address: Address,
        publication: str,
        handle: Callable[[Sequence[Change]], Awaitable[None]],
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._address = address
        self._publication = publication
        self._handle = handle
        self._prepare = prepare
        self._live = anyio.Event()
        self._random = Random()

    @property
    def is_live(self) -> bool:
        """Whether a slot exists right now."""
        return self._live.is_set()

    async def wait_live(self) -> None:
        """Return when a slot exists: what commits after that is heard."""
        while not self._live.is_set():
            await self._live.wait()

    async def run(self) -> None:
        """Stream for ever; only cancellation ends it. A lost connection is made again, with a new slot."""
        pause_seconds, said = _FIRST_PAUSE_SECONDS, ""
        while True:
            try:
                if self._prepare is not None:
                    await self._prepare()
                await self._stream()
            except (WalsenderError, PgOutputError) as error:
                if self.is_live:
                    pause_seconds, said = _FIRST_PAUSE_SECONDS, ""
                    self._live = anyio.Event()
                if str(error) != said:
                    said = str(error)
                    logger.warning("%s is not heard: %s; trying again", self._publication, said)
            await anyio.sleep(self._random.uniform(0.5, 1) * pause_seconds)
            pause_seconds = min(_LONGEST_PAUSE_SECONDS, pause_seconds * 2)

    async def _stream(self) -> None:
        # Several gateways may share one server, and a slot name is unique in it.
        slot = f"{self._publication[:40]}_{secrets.token_hex(6)}"
        sender = await Walsender.connect(self._address)
        try:
            await sender.start(slot, self._publication)
            logger.info("%s is heard, slot %s", self._publication, slot)
            self._live.set()
            decoder = Decoder()
            async for messages in sender.messages():
                changes = [change for message in messages if (change := decoder.decode(message)) is not None]
                if changes:
                    await self._handle(changes)
        finally:
            sender.close()
