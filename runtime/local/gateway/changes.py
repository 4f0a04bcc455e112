"""Committed rows as `postgres_changes` frames: gathered for a polling interval, matched, encoded.

The real server asks its slot for news every 100 to 500 ms, and so a row waits up to that long. Here rows
arrive at once and wait for the next tick of `poll_seconds`, so that nobody comes to rely on a speed the real
server lacks.
"""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import anyio

from runtime.local.gateway.database import DATABASE_FAULTS, Connection, Database
from runtime.local.gateway.frames import compact
from runtime.local.gateway.payloads import PayloadWriter, Values, VisibleColumns, refused, values
from runtime.local.gateway.pgoutput import Change
from runtime.local.gateway.replication import LogStream
from runtime.local.gateway.subscriptions import PUBLICATION, Identity, TableSubscription
from runtime.local.gateway.visibility import Access, is_visible, read_access, read_types
from runtime.local.gateway.walsender import Address

logger = logging.getLogger(__name__)

_MAX_PENDING: Final = 10_000


class ChangeSubscriber(Protocol):
    """A receiver of changes: one joined channel."""

    def push_change(self, payload: str) -> None:
        """Send one `postgres_changes` payload, which is JSON text."""


class ChangeFeed:
    """Reads the publication `supabase_realtime` and sends each subscriber its changes.

    Streaming begins with the first subscription, and from then on goes on as long as the feed runs.

    Args:
        address: where the walsender is.
        database: ordinary connections, to ask what a role may see; dates ISO and in UTC.
        poll_seconds: how long a row waits at most.
    """

    def __init__(self, address: Address, database: Database, poll_seconds: float) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._stream = LogStream(address, PUBLICATION, self._take)
        self._by_table: dict[int, dict[ChangeSubscriber, list[TableSubscription]]] = {}
        self._wanted = anyio.Event()
        self._pending: list[Change] = []
        self._arrived = anyio.Event()
        self._emptied = anyio.Event()
        self._writer = PayloadWriter()

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._wanted.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stream.run)
            tasks.start_soon(self._tick)

    async def subscribe(
        self, subscriber: ChangeSubscriber, subscriptions: Iterable[TableSubscription]
    ) -> None:
        """Replace a subscriber's subscriptions; return when they apply to all later commits."""
        self._wanted.set()
        await self._stream.wait_live()
        await anyio.lowlevel.checkpoint()  # a channel that was closed meanwhile ends here
        self.unsubscribe(subscriber)
        for subscription in subscriptions:
            self._by_table.setdefault(subscription.table_oid, {}).setdefault(subscriber, []).append(
                subscription
            )

    def unsubscribe(self, subscriber: ChangeSubscriber) -> None:
        """Tell this subscriber nothing more."""
        for table_oid, subscribers in list(self._by_table.items()):
            subscribers.pop(subscriber, None)
            if not subscribers:
                del self._by_table[table_oid]

    async def _take(self, changes: Sequence[Change]) -> None:
        wanted = [change for change in changes if change.relation.oid in self._by_table]
        if not wanted:
            return
        self._pending += wanted
        self._arrived.set()
        while len(self._pending) >= _MAX_PENDING:
            # Nothing more is read meanwhile, so a huge transaction waits in the server and not here.
            await self._emptied.wait()

    async def _tick(self) -> None:
        while True:
            await self._arrived.wait()
            now = time.monotonic()
            await anyio.sleep(math.ceil(now / self._poll_seconds) * self._poll_seconds - now)
            batch, self._pending = self._pending, []
            self._arrived = anyio.Event()
            self._emptied.set()
            self._emptied = anyio.Event()
            try:
                await self._deliver(batch)
            except DATABASE_FAULTS as error:
                # The real server loses a batch in this way too, silently.
                logger.warning("%d changes were lost: %s", len(batch), error)

    async def _deliver(self, changes: Sequence[Change]) -> None:
        async with self._database.connection() as connection:
            batch = _ChangeBatch(connection, self._writer)
            for number, change in enumerate(changes):
                if number % 100 == 0:
                    await anyio.lowlevel.checkpoint()
                if unknown := self._writer.unknown_types(change.relation):
                    self._writer.types |= await read_types(connection, unknown)
                for subscriber, subscriptions in list(self._by_table.get(change.relation.oid, {}).items()):
                    for data, ids in (await batch.match(change, subscriptions)).items():
                        subscriber.push_change(f'{{"data":{data},"ids":{compact(ids)}}}')


class _ChangeBatch:
    """The changes of one polling interval; they share the answers of the database."""

    def __init__(self, connection: Connection, writer: PayloadWriter) -> None:
        self._connection = connection
        self._writer = writer
        self._accesses: dict[tuple[int, str], Access] = {}
        self._change: Change | None = None
        self._row: Values = {}
        self._seen: dict[Identity, bool] = {}
        self._written: dict[VisibleColumns, str] = {}

    async def match(self, change: Change, subscriptions: Sequence[TableSubscription]) -> dict[str, list[int]]:
        """Return a change as one subscriber gets it: the data, and the bindings it is for.

        Bindings that select different columns are told different data.
        """
        if change is not self._change:
            self._change, self._seen, self._written = change, {}, {}
            self._row = values(change, change.new if change.new is not None else change.old)
            if change.new is None and not change.relation.full_identity:
                # Columns that a DELETE did not log are NULL here; no condition may match that.
                logged = {column.name for column in change.relation.columns if column.in_identity}
                self._row = {name: text for name, text in self._row.items() if name in logged}
        found: dict[str, list[int]] = {}
        for subscription in subscriptions:
            if subscription.wants(change.kind):
                data = await self._data(change, subscription)
                if data is not None:
                    found.setdefault(data, []).append(subscription.binding_id)
        return found

    async def _data(self, change: Change, subscription: TableSubscription) -> str | None:
        identity, is_gone = subscription.identity, change.kind == "DELETE"
        access = await self._access(change.relation.oid, identity.role)
        if access.refusal is not None and not is_gone:
            return refused(change, access.refusal)
        if not await subscription.passes(self._connection, self._row):
            return None
        if access.is_guarded and not is_gone:
            if identity not in self._seen:
                self._seen[identity] = await is_visible(
                    self._connection, change.relation, access.key, self._row, identity
                )
            if not self._seen[identity]:
                return None
        now = access.readable
        if subscription.select is not None:
            now = now.intersection(subscription.select.union(access.key))
        # Policies cannot judge a deleted row, so if there are policies only its key is sent.
        has_old_row = change.relation.full_identity and not (is_gone and access.is_guarded)
        shown = VisibleColumns(now, now if has_old_row else now.intersection(access.key))
        if shown not in self._written:
            self._written[shown] = self._writer.write(change, shown)
        return self._written[shown]

    async def _access(self, table_oid: int, role: str) -> Access:
        known = self._accesses.get((table_oid, role))
        if known is None:
            known = self._accesses[table_oid, role] = await read_access(self._connection, table_oid, role)
        return known
