"""The newest messages of a private topic, sent again on a join with `config.broadcast.replay`."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeGuard

import asyncpg

from runtime.local.gateway.database import DATABASE_FAULTS, Database
from runtime.local.gateway.frames import BroadcastFrame, Version, compact, write, write_broadcast
from runtime.local.gateway.token_refusals import JoinRefused

_MOST: Final = 25
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Like the real server, this skips the partitions of coming days.
_MESSAGES: Final = """
select m.id::text, m.event, m.payload::text, to_jsonb(m) ->> 'binary_payload' as binary
from realtime.messages m
where m.topic = $1 and m.private and m.extension = 'broadcast'
  and m.inserted_at >= $2 and m.inserted_at < timezone('utc', now()) + interval '1 minute'
order by m.inserted_at desc
limit $3
"""


async def read_replay(database: Database, topic: str, wanted: Mapping[str, Any]) -> list[BroadcastFrame]:
    """Return the newest messages of a topic since a moment, in the order they were sent.

    Args:
        database: connections of the owner of `realtime.messages`.
        topic: the topic without its prefix.
        wanted: `since` in milliseconds of the Unix clock, and `limit`, by default and at most 25.

    Raises:
        JoinRefused: `wanted` is invalid, or the database is away.
    """
    since, limit = wanted.get("since"), wanted.get("limit") or _MOST
    if not _is_integer(since) or not _is_integer(limit):
        raise JoinRefused("UnableToReplayMessages: Replay params are not valid")
    try:
        moment = (_EPOCH + timedelta(milliseconds=since)).replace(tzinfo=None)
    except OverflowError:
        raise JoinRefused("UnableToReplayMessages: Replay params are not valid") from None
    try:
        async with database.connection() as connection:
            rows = await connection.fetch(_MESSAGES, topic, moment, max(1, min(limit, _MOST)))
    except DATABASE_FAULTS as error:
        raise JoinRefused("UnableToReplayMessages: Realtime was unable to replay messages") from error
    return [_broadcast(row) for row in reversed(rows)]


def write_replayed(
    version: Version, join_ref: str | None, topic: str, broadcast: BroadcastFrame
) -> str | bytes | None:
    """Return the frame of a replayed message: text, unless its value is bytes, which version 1.0.0 cannot carry."""
    if not broadcast.is_json:
        return write_broadcast(version, topic, broadcast)
    payload = (
        f'{{"event":{compact(broadcast.event)},"meta":{compact(broadcast.meta)},'
        f'"payload":{broadcast.body.decode()},"type":"broadcast"}}'
    )
    return write(version, join_ref, None, topic, "broadcast", payload)


def _broadcast(row: asyncpg.Record) -> BroadcastFrame:
    meta = {"id": row["id"], "replayed": True}
    if row["binary"] is not None:
        return BroadcastFrame(
            row["event"], bytes.fromhex(row["binary"].removeprefix("\\x")), meta, is_json=False
        )
    return BroadcastFrame(row["event"], compact(json.loads(row["payload"] or "null")).encode(), meta)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
