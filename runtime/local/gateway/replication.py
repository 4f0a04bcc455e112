"""A stream of committed changes, through a publication and temporary slots."""

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence

import anyio

from runtime.backoff import Outage
from runtime.local.gateway.pgoutput import Change, Decoder, PgOutputError
from runtime.local.gateway.walsender import Address, Walsender, WalsenderError

logger = logging.getLogger(__name__)


class LogStream:
    """One publication as a stream of changes, in commit order.

    The slot is temporary: changes that commit while the connection is down are missed, as with the real server.

    Args:
        address: the server; the role must have REPLICATION.
        publication: its name; it must exist when `prepare` returns.
        handle: called with the changes that arrived together. While it runs nothing more is read.
        prepare: called before each connection, to make the publication.
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

    @property
    def is_live(self) -> bool:
        """Whether a slot exists right now."""
        return self._live.is_set()

    async def wait_live(self) -> None:
        """Return when a slot exists: later commits are heard."""
        while not self._live.is_set():
            await self._live.wait()

    async def run(self) -> None:
        """Stream for ever; only cancellation ends it. A lost connection is made again, with a new slot."""
        outage = Outage(first=0.1, cap=2.0)
        while True:
            try:
                if self._prepare is not None:
                    await self._prepare()
                await self._stream()
            except (WalsenderError, PgOutputError) as error:
                if self.is_live:
                    outage.over()
                    self._live = anyio.Event()
                if outage.is_news(str(error)):
                    logger.warning("%s is not heard: %s; trying again", self._publication, error)
            await anyio.sleep(outage.pause_seconds())

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
