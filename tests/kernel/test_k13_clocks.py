"""K13: there is one clock, the database's as it runs; a worker's own never crosses the wire."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.kernel.driver import Worker, advance, insert, send
from tests.kernel.schedule import transaction
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

STANDING_CLOCKS = (
    r"\m(now\s*\(|current_timestamp|current_time|localtime|transaction_timestamp|statement_timestamp)"
)


async def test_k13_no_clock_stands_still_for_a_transaction(db: Any) -> None:
    told = await db.fetch(
        "select p.oid::regprocedure::text as at, p.prosrc as text from pg_proc p where p.pronamespace = "
        "'runtime'::regnamespace or p.pronamespace = 'public'::regnamespace and p.proname like 'stream\\_%' "
        "union all select a.adrelid::regclass::text, pg_get_expr(a.adbin, a.adrelid) from pg_attrdef a "
        "join pg_class c on c.oid = a.adrelid where c.relnamespace in ('public'::regnamespace, 'runtime'::regnamespace)"
    )
    assert len(told) > 50
    assert [
        row["at"] for row in told if await db.fetchval("select $1 ~ $2", row["text"], STANDING_CLOCKS)
    ] == []


async def lease_seconds_after_the_start(worker: Worker) -> timedelta:
    """How much later than its transaction's start a lease of 30 s ends."""
    async with transaction(worker.connection):
        begun: datetime = await worker.connection.fetchval("select now()")
        await worker.take()
        ends: datetime = await worker.connection.fetchval("select visible_at from runtime.deliveries")
    return ends - begun


async def test_k13_a_lease_counts_from_its_taking_not_from_the_start_of_the_transaction(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    assert await lease_seconds_after_the_start(worker) > timedelta(seconds=30)


async def test_k13_without_it_a_transaction_that_waited_has_used_up_its_lease(
    db: Any, worker: Worker
) -> None:
    await switch_off(
        db, "stream_exchange", "until timestamptz := clock_timestamp()", "until timestamptz := now()"
    )
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    assert await lease_seconds_after_the_start(worker) == timedelta(seconds=30)


async def test_k13_a_worker_sends_seconds_and_hears_seconds(db: Any, worker: Worker) -> None:
    arguments = await db.fetch(
        "select p.proname || ': ' || t::regtype as argument from pg_proc p, unnest(p.proargtypes) as t "
        "where p.proname in ('stream_exchange', 'stream_subscribe', 'stream_send', 'stream_prune') "
        "and t::regtype::text ~ 'time|date|interval'"
    )
    assert arguments == []
    await worker.subscribe("a.one=task.output")
    await send(db, {"key": "task.output", "value": 1, "delay": 20.5, "expires_in": 40.5})
    delay, life = await db.fetchrow(
        "select deliver_at - created_at, expires_at - created_at from consciousness_stream"
    )
    assert abs(delay - timedelta(seconds=20.5)) < timedelta(seconds=1)
    assert abs(life - timedelta(seconds=40.5)) < timedelta(seconds=1)
    answer = await worker.exchange(want=1, due=True)
    assert 15 < answer.more["next_due"] <= 20.5
    await advance(db, 30)
    assert (await worker.exchange(want=1, due=True)).more["next_due"] <= 30


async def test_k13_the_database_stamps_when_a_worker_started(db: Any, worker: Worker) -> None:
    async def started_at(claimed: str) -> datetime:
        description = {"id": str(worker.id), "name": "w", "started_at": claimed, "seen_at": claimed}
        await db.fetchval("select stream_subscribe($1, '[]')", description)
        stamped: datetime = await db.fetchval("select started_at from runtime.workers")
        return stamped

    first = await started_at("2100-01-01T00:00:00Z")
    assert first <= await db.fetchval("select clock_timestamp()")
    # Subscribing again is no new start.
    assert await started_at("1970-01-01T00:00:00Z") == first
