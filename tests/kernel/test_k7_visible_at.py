"""K7: one time a delivery says when it may be looked at: never set, a delay, a retry, a lease's end, or parked."""

from typing import Any

import pytest

from tests.kernel.driver import Worker, advance, insert, send
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

SECONDS_LEFT = "select extract(epoch from visible_at - clock_timestamp())::float from runtime.deliveries"


async def test_k7_one_time_serves_delay_lease_retry_and_putting_off(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    await send(db, {"key": "task.output", "value": 1, "delay": 100})
    assert 90 < await db.fetchval(SECONDS_LEFT) <= 100
    answer = await worker.exchange(want=1, due=True)
    assert answer.ids == []
    assert 90 < answer.more["next_due"] <= 100

    await advance(db, 100)
    (taken,) = await worker.take(lease_seconds=40)
    assert 30 < await db.fetchval(SECONDS_LEFT) <= 40
    await worker.exchange(renew=[taken.report()], lease=80)
    assert 70 < await db.fetchval(SECONDS_LEFT) <= 80

    await worker.fail(taken, delay=200)
    assert 190 < await db.fetchval(SECONDS_LEFT) <= 200
    assert await worker.take() == []
    await advance(db, 200)
    (taken,) = await worker.take()
    await worker.fail(taken, outcome="later", delay=300)
    assert 290 < await db.fetchval(SECONDS_LEFT) <= 300
    await advance(db, 300)
    (taken,) = await worker.take()
    await worker.fail(taken, outcome="released")
    assert await db.fetchval("select visible_at is null and lease is null from runtime.deliveries")


async def test_k7_an_abandoned_lease_comes_due_by_itself(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    await worker.take()
    assert await worker.take() == []
    await advance(db, 31)
    assert [each.id for each in await worker.take()] == [message]


async def test_k7_without_a_lease_s_end_the_same_delivery_is_taken_twice(db: Any, worker: Worker) -> None:
    await switch_off(db, "runtime.take_fresh", "set visible_at = until, lease", "set lease")
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    assert [[each.id for each in await worker.take()] for _ in range(2)] == [[message], [message]]


async def test_k7_what_stands_behind_its_key_is_parked_until_it_is_let_go(db: Any, worker: Worker) -> None:
    await worker.subscribe({"name": "a.one", "patterns": ["task.output"], "ordered": True})
    first, second = await send(db, ("task.output", 1), ("task.output", 2))
    (taken,) = await worker.take()
    assert taken.id == first
    assert await db.fetchval(
        "select visible_at = 'infinity' from runtime.deliveries where message_id = $1", second
    )
    # Parked is not due at any time: nobody sets a timer for it.
    assert (await worker.exchange(want=1, due=True)).more["next_due"] < 31
    await worker.finish(taken)
    assert await db.fetchval(
        "select visible_at is null from runtime.deliveries where message_id = $1", second
    )


async def test_k7_a_delivery_is_named_by_its_message_and_subscription(db: Any, worker: Worker) -> None:
    columns = await db.fetchval(
        "select array_agg(a.attname::text order by a.attnum) from pg_index i join pg_attribute a "
        "on a.attrelid = i.indrelid and a.attnum = any (i.indkey) "
        "where i.indrelid = 'runtime.deliveries'::regclass and i.indisprimary"
    )
    assert columns == ["message_id", "subscription"]
