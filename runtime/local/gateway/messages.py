"""Rows of `realtime.messages` as broadcasts, streamed out of the log at once.

`realtime.send` inserts them. The table is partitioned by day; like the real server, the gateway has the coming
partitions made while it runs, and drops those older than three days.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio
import asyncpg

from runtime.local.gateway.database import DATABASE_FAULTS, Database
from runtime.local.gateway.frames import BroadcastFrame
from runtime.local.gateway.pgoutput import Change
from runtime.local.gateway.replication import LogStream
from runtime.local.gateway.walsender import Address, WalsenderError

logger = logging.getLogger(__name__)

PUBLICATION: Final = "supabase_realtime_messages_publication"
_PARTITIONS_BEFORE: Final = """
select format('%I.%I', n.nspname, c.relname) as name
from pg_inherits i
join pg_class c on c.oid = i.inhrelid
join pg_namespace n on n.oid = c.relnamespace
where i.inhparent = 'realtime.messages'::regclass
  and c.relname ~ '^messages_\\d{4}_\\d\\d_\\d\\d$' and c.relname < $1
"""
_JANITOR_SECONDS: Final = 3600.0
_DAYS_KEPT: Final = 3


@dataclass(frozen=True, slots=True)
class StoredBroadcast:
    """One message out of the database."""

    topic: str
    private: bool
    broadcast: BroadcastFrame


class MessageFeed:
    """Hears `realtime.messages` and hands on each broadcast.

    Args:
        address: where the walsender is.
        database: connections of the owner of `realtime.messages`.
        deliver: called with each message, in commit order; must not block.
    """

    def __init__(
        self, address: Address, database: Database, deliver: Callable[[StoredBroadcast], None]
    ) -> None:
        self._database = database
        self._deliver = deliver
        self.stream = LogStream(address, PUBLICATION, self._take, self._prepare)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.stream.run)
            tasks.start_soon(self._keep_partitions)

    async def _take(self, changes: Sequence[Change]) -> None:
        for change in changes:
            sent = read_message(change)
            if sent is not None:
                self._deliver(sent)

    async def _prepare(self) -> None:
        try:
            async with self._database.connection() as connection:
                if not await connection.fetchval("select to_regclass('realtime.messages') is not null"):
                    raise WalsenderError("there is no table realtime.messages; is this a Supabase database?")
                if not await connection.fetchval(
                    "select true from pg_publication where pubname = $1", PUBLICATION
                ):
                    await connection.execute(
                        f"create publication {PUBLICATION} for table realtime.messages "
                        "with (publish = 'insert', publish_via_partition_root = true)"
                    )
        except asyncpg.DuplicateObjectError:
            pass  # another gateway was faster
        except DATABASE_FAULTS as error:
            raise WalsenderError(f"the database does not answer: {error}") from error

    async def _keep_partitions(self) -> None:
        while True:
            try:
                await self.make_partitions()
            except DATABASE_FAULTS as error:
                logger.warning("The partitions of realtime.messages could not be made: %s", error)
                await anyio.sleep(5)
            else:
                await anyio.sleep(_JANITOR_SECONDS)

    async def make_partitions(self) -> None:
        """Make the partitions that are missing and drop those past their time."""
        today = datetime.now(UTC).date()
        async with self._database.connection() as connection:
            # A real Supabase project has a janitor of its own.
            if await connection.fetchval(
                "select to_regprocedure('realtime.make_message_partitions()') is null"
            ):
                return
            await connection.execute("select realtime.make_message_partitions()")
            last_kept = today - timedelta(days=_DAYS_KEPT)
            old = await connection.fetch(_PARTITIONS_BEFORE, f"messages_{last_kept:%Y_%m_%d}")
            for partition in old:
                await connection.execute(f"drop table if exists {partition['name']}")


def read_message(change: Change) -> StoredBroadcast | None:
    """The broadcast that this row of `realtime.messages` is, or None when it is none."""
    if change.kind != "INSERT" or change.new is None:
        return None
    row = {column.name: cell for column, cell in zip(change.relation.columns, change.new, strict=False)}
    topic, event, payload, identity = (row.get(name) for name in ("topic", "event", "payload", "id"))
    binary = row.get("binary_payload")
    if row.get("extension") != "broadcast" or not isinstance(topic, str) or not isinstance(event, str):
        return None
    meta = {"id": identity} if isinstance(identity, str) else {}
    if isinstance(binary, str):
        body = bytes.fromhex(binary.removeprefix("\\x"))
        return StoredBroadcast(
            topic, row.get("private") == "t", BroadcastFrame(event, body, meta, is_json=False)
        )
    body = payload.encode() if isinstance(payload, str) else b"{}"
    return StoredBroadcast(topic, row.get("private") == "t", BroadcastFrame(event, body, meta))
