"""How do committed rows become `postgres_changes` frames? Gathered for a polling interval, matched, encoded.

The real server asks its slot for news every 100 to 500 ms, and so a row waits up to that long. Here rows
arrive at once and wait for the next tick of `poll_seconds`, so that nobody comes to rely on a speed the real
server lacks.
"""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import anyio

from runtime.local.gateway.database import DATABASE_FAULTS, Connection, Database
from runtime.local.gateway.encoding import json_object, json_value, quoted
from runtime.local.gateway.frames import compact
from runtime.local.gateway.pgoutput import UNCHANGED, Change, Row
from runtime.local.gateway.replication import LogStream
from runtime.local.gateway.subscriptions import PUBLICATION, Identity, Subscription
from runtime.local.gateway.visibility import Access, ColumnType, is_visible, read_access, read_types
from runtime.local.gateway.walsender import Address

logger = logging.getLogger(__name__)

_MAX_RECORD_BYTES: Final = 1 << 20
_SMALL_VALUE_BYTES: Final = 64
_MAX_PENDING: Final = 10_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Subscriber(Protocol):
    """Whom changes are for: one joined channel."""

    def push_change(self, payload: str) -> None:
        """Send one `postgres_changes` payload, which is JSON text."""


class ChangeFeed:
    """Hears the publication `supabase_realtime` and tells the subscribers what they asked for.

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
        self._by_table: dict[int, dict[Subscriber, list[Subscription]]] = {}
        self._wanted = anyio.Event()
        self._pending: list[Change] = []
        self._arrived = anyio.Event()
        self._emptied = anyio.Event()
        self._types: dict[int, ColumnType] = {}

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._wanted.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stream.run)
            tasks.start_soon(self._tick)

    async def subscribe(self, subscriber: Subscriber, subscriptions: Iterable[Subscription]) -> None:
        """Replace what this subscriber hears; returns when it will hear what commits from now on."""
        self._wanted.set()
        await self._stream.wait_live()
        await anyio.lowlevel.checkpoint()  # a channel that was closed meanwhile ends here
        self.unsubscribe(subscriber)
        for subscription in subscriptions:
            self._by_table.setdefault(subscription.table_oid, {}).setdefault(subscriber, []).append(
                subscription
            )

    def unsubscribe(self, subscriber: Subscriber) -> None:
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
                # The real server loses a batch this way too, and tells nobody.
                logger.warning("%d changes were lost: %s", len(batch), error)

    async def _deliver(self, batch: Sequence[Change]) -> None:
        async with self._database.connection() as connection:
            accesses: dict[tuple[int, str], Access] = {}
            for number, change in enumerate(batch):
                if number % 100 == 0:
                    await anyio.lowlevel.checkpoint()
                await self._deliver_one(connection, change, accesses)

    async def _deliver_one(
        self,
        connection: Connection,
        change: Change,
        accesses: dict[tuple[int, str], Access],
    ) -> None:
        table_oid = change.relation.oid
        row = _row(change, change.new if change.new is not None else change.old)
        seen: dict[Identity, bool] = {}
        encoded: dict[tuple[frozenset[str], bool], str] = {}
        for subscriber, subscriptions in list(self._by_table.get(table_oid, {}).items()):
            ids_by_data: dict[str, list[int]] = {}
            for subscription in subscriptions:
                identity = subscription.identity
                access = accesses.get((table_oid, identity.role))
                if access is None:
                    access = await read_access(connection, table_oid, identity.role)
                    accesses[table_oid, identity.role] = access
                refusal = access.refusal if change.kind != "DELETE" else None
                if refusal is not None:
                    ids_by_data.setdefault(_refused(change, refusal), []).append(subscription.binding_id)
                    continue
                if not subscription.matches(change.kind, row):
                    continue
                if access.is_guarded and change.kind != "DELETE":
                    if identity not in seen:
                        seen[identity] = await is_visible(
                            connection, change.relation, access.key, row, identity
                        )
                    if not seen[identity]:
                        continue
                columns = access.readable
                if subscription.select is not None:
                    columns &= subscription.select | access.key.keys()
                only_key = change.kind == "DELETE" and access.is_guarded
                data = encoded.get((columns, only_key))
                if data is None:
                    await self._learn_types(connection, change)
                    old_columns = columns & access.key.keys() if only_key else columns
                    data = encoded[columns, only_key] = self._encode(change, columns, old_columns, access)
                ids_by_data.setdefault(data, []).append(subscription.binding_id)
            for data, ids in ids_by_data.items():
                subscriber.push_change(f'{{"data":{data},"ids":{compact(ids)}}}')

    async def _learn_types(self, connection: Connection, change: Change) -> None:
        unknown = {column.type_oid for column in change.relation.columns} - self._types.keys()
        if unknown:
            self._types |= await read_types(connection, unknown)

    def _encode(
        self, change: Change, columns: frozenset[str], old_columns: frozenset[str], access: Access
    ) -> str:
        relation = change.relation
        is_large = _wal_bytes(change) > _MAX_RECORD_BYTES
        shown = ", ".join(
            f'{{"name": {quoted(column.name)}, "type": {quoted(self._types[column.type_oid].shown)}}}'
            for column in relation.columns
            if column.name in columns
        )
        rows = ""
        if change.new is not None:
            rows += f'"record":{self._object(change, _row(change, change.new), columns, is_large)},'
        if change.kind != "INSERT":
            # An UPDATE that left the key alone does not repeat it in the log.
            old = _row(change, change.old) if change.old is not None else _row(change, change.new)
            kept = old_columns if relation.full_identity else old_columns & access.key.keys()
            rows += f'"old_record":{self._object(change, old, kept, is_large)},'
        errors = '["Error 413: Payload Too Large"]' if is_large else "null"
        committed_at = (_EPOCH + timedelta(microseconds=change.committed_us)).strftime("%Y-%m-%dT%H:%M:%S.%f")
        committed_at = f"{committed_at[:-3]}Z"
        return (
            f'{{"table":{quoted(relation.table)},"type":"{change.kind}",{rows}"columns":[{shown}],"errors":{errors},'
            f'"schema":{quoted(relation.schema)},"commit_timestamp":"{committed_at}"}}'
        )

    def _object(
        self, change: Change, row: dict[str, str | None], columns: frozenset[str], is_large: bool
    ) -> str:
        members = {
            column.name: json_value(row[column.name], self._types[column.type_oid].written)
            for column in change.relation.columns
            if column.name in columns and column.name in row
        }
        if is_large:
            members = {
                name: text for name, text in members.items() if len(text.encode()) <= _SMALL_VALUE_BYTES
            }
        return json_object(members)


def _row(change: Change, cells: Row | None) -> dict[str, str | None]:
    """The values by column; a value that the log left out is taken from the old row, if that is there."""
    row: dict[str, str | None] = {}
    for place, (column, cell) in enumerate(zip(change.relation.columns, cells or (), strict=False)):
        if cell is UNCHANGED and change.old is not None:
            cell = change.old[place]
        if cell is not UNCHANGED:
            row[column.name] = cell
    return row


def _refused(change: Change, why: str) -> str:
    return (
        f'{{"table":{quoted(change.relation.table)},"type":"{change.kind}","record":{{}},"columns":[],'
        f'"errors":[{quoted(why)}],"schema":{quoted(change.relation.schema)},"commit_timestamp":null}}'
    )


def _wal_bytes(change: Change) -> int:
    """About how long wal2json's text of this change would be: the server's limit is measured in it."""
    cells = [
        cell for row in (change.new, change.old) if row is not None for cell in row if isinstance(cell, str)
    ]
    around = 300 + 90 * len(change.relation.columns)
    plain = around + sum(map(len, cells))
    # Escaping and UTF-8 can make it six times as long at most; most rows need no closer look.
    if plain * 6 < _MAX_RECORD_BYTES:
        return plain
    return around + sum(len(quoted(cell).encode()) for cell in cells)
