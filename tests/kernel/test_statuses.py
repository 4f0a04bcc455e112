"""Statuses: the last words of a handler about its delivery, by whoever has it, for as long as its message is there."""

from typing import Any

import pytest

from tests.kernel.driver import Taken, Worker, insert

pytestmark = pytest.mark.anyio


async def tell(connection: Any, taken: Taken, text: str) -> int:
    """Tell a status, as a worker does; returns how many were kept."""
    told = {"message": taken.id, "subscription": taken.subscription, "lease": str(taken.lease), "text": text}
    answer = await connection.fetchval("select stream_status($1)", [told])
    return int(answer["told"])


async def kept(connection: Any) -> Any:
    return await connection.fetchval("select array_agg(text) from runtime.statuses")


async def test_a_status_is_told_by_who_has_the_delivery_and_goes_with_its_message(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    [old] = await worker.take()
    assert await tell(db, old, "x" * 300) == 1
    assert await kept(db) == ["x" * 200]
    await db.execute("update runtime.deliveries set visible_at = clock_timestamp()")
    [new] = await worker.take()
    assert await tell(db, new, "by the second") == 1
    # A frozen worker has lost the delivery; the second one tells its last words a moment after its end.
    assert await tell(db, old, "by the first") == 0
    await worker.fail(new, outcome="dead")
    assert await tell(db, new, "at the end") == 1
    await db.fetchval("select stream_prune(0)")
    assert await kept(db) == ["at the end"]
    await db.fetchval("select stream_discard()")
    assert await kept(db) is None


async def test_a_replay_begins_without_a_status_and_nothing_is_kept_of_what_is_not_there(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    [taken] = await worker.take()
    await tell(db, taken, "first")
    await worker.finish(taken)
    await db.fetchval("select stream_replay('a.one')")
    assert await kept(db) is None
    await worker.finish(*await worker.take())
    await db.fetchval("select stream_prune(0)")
    assert await tell(db, taken, "too late") == 0
