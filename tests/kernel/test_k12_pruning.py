"""K12: only what nobody has in hand is pruned, what nobody took is counted as expired, dead letters keep their copy."""

from typing import Any

import pytest

from tests.kernel.driver import Worker, advance, insert, send
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


async def prune(db: Any, seconds: float = 60, **options: int) -> dict[str, Any]:
    """One batch."""
    named = "".join(f", {name} => {given}" for name, given in options.items())
    answer: dict[str, Any] = await db.fetchval(f"select stream_prune($1{named})", seconds)
    return answer


async def messages(db: Any) -> list[int]:
    """The ids that are left."""
    return [row["id"] for row in await db.fetch("select id from consciousness_stream order by id")]


async def test_k12_old_messages_go_with_their_runs_and_young_ones_stay(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    old = await send(db, *(("task.output", n) for n in range(3)))
    await worker.finish(*await worker.take())
    await advance(db, 61)
    young = await insert(db, "task.output", 9)
    assert await prune(db) == {"pruned": 3, "expired": 0, "last": old[-1]}
    assert await messages(db) == [young]
    assert await db.fetchval("select count(*) from runtime.runs") == 0
    assert await prune(db) == {"pruned": 0, "expired": 0, "last": None}


async def in_hand(db: Any, worker: Worker) -> list[int]:
    """Four old messages: one leased, one that waits for a retry, one delayed, one of a subscription without workers."""
    await worker.subscribe("a.one=task.output", "z.orphan=site.output")
    leased, retrying, orphan = await send(db, ("task.output", 1), ("task.output", 2), ("site.output", 3))
    (delayed,) = await send(db, {"key": "task.output", "value": 4, "delay": 500})
    first, second = (await worker.exchange(want={"a.one": 10}, lease=500, due=True)).taken
    assert (first.id, second.id) == (leased, retrying)
    await worker.fail(second, delay=500)
    await advance(db, 61)
    return [leased, retrying, delayed, orphan]


async def test_k12_what_is_in_hand_keeps_its_message_and_what_nobody_took_expires(
    db: Any, worker: Worker
) -> None:
    leased, retrying, delayed, orphan = await in_hand(db, worker)
    answer = await prune(db)
    assert answer == {"pruned": 1, "expired": 1, "last": delayed}
    assert await messages(db) == [leased, retrying, delayed]
    assert orphan not in await messages(db)
    assert await db.fetchval(
        "select array_agg(name || expired order by name) from runtime.subscriptions"
    ) == [
        "a.one0",
        "z.orphan1",
    ]


async def test_k12_without_it_a_message_is_taken_from_under_its_handler(db: Any, worker: Worker) -> None:
    await switch_off(
        db, "stream_prune", "and not exists (select from runtime.deliveries d where d.message_id = m.id)", ""
    )
    await in_hand(db, worker)
    await prune(db)
    assert await messages(db) == []


async def test_k12_a_lease_abandoned_longer_than_the_retention_fills_no_disk(db: Any, worker: Worker) -> None:
    await worker.subscribe("z.orphan=task.output")
    await send(db, ("task.output", 1), ("task.output", 2))
    crashed, failed = await worker.take()
    await worker.fail(failed)
    assert crashed.id in await messages(db)
    await advance(db, 60)
    assert (await prune(db, 50))["expired"] == 1
    assert await messages(db) == [crashed.id]
    await advance(db, 60)
    assert await prune(db, 50) == {"pruned": 1, "expired": 1, "last": crashed.id}


async def test_k12_an_expired_delivery_counts_as_ended(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.wild=task.>", "b.exact=task.output")
    message = await insert(db, "task.output", 1)
    (taken,) = (await worker.exchange(want={"a.wild": 1}, lease=500)).taken
    await advance(db, 61)
    assert (await prune(db))["expired"] == 1
    # The last delivery that counts has ended, though another keeps the message.
    assert await db.fetchval("select processed from consciousness_stream where id = $1", message)
    assert (await worker.finish(taken)).refused == set()


async def expire_the_head(db: Any, worker: Worker) -> tuple[int, list[int]]:
    """A head abandoned long ago and a young one parked behind it: prune, then take."""
    await worker.subscribe({"name": "a.one", "patterns": ["task.output"], "ordered": True})
    await insert(db, "task.output", 1)
    await worker.take()
    await advance(db, 60)
    young = await insert(db, "task.output", 2)
    await worker.take(due=False)
    assert await db.fetchval(
        "select visible_at = 'infinity' from runtime.deliveries where message_id = $1", young
    )
    assert (await prune(db, 25))["expired"] == 1
    return young, [each.id for each in await worker.take()]


async def test_k12_the_next_of_an_ordered_key_is_let_go_when_the_one_before_it_expires(
    db: Any, worker: Worker
) -> None:
    young, taken = await expire_the_head(db, worker)
    assert taken == [young]


async def test_k12_without_it_the_next_of_its_key_stays_parked(db: Any, worker: Worker) -> None:
    await switch_off(db, "runtime.after_end", "where e.ordered_key is not null", "where false")
    _, taken = await expire_the_head(db, worker)
    assert taken == []


async def test_k12_pages_of_a_few_reach_everything_old(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    ids = await send(db, *(("task.output", n) for n in range(7)))
    kept = (await worker.exchange(want=1, lease=500)).ids
    await advance(db, 61)
    after, pages = 0, []
    while (answer := await prune(db, max=3, after=after))["last"] is not None:
        pages.append((answer["pruned"], answer["expired"], answer["last"]))
        after = answer["last"]
    assert pages == [(2, 2, ids[2]), (3, 3, ids[5]), (1, 1, ids[6])]
    assert await messages(db) == kept


async def test_k12_a_dead_letter_holds_its_own_copy(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", {"n": 1})
    await worker.fail(*await worker.take(), outcome="dead")
    await advance(db, 61)
    assert (await prune(db))["pruned"] == 1
    letter = await db.fetchrow("select message_id, key, message, attempts from runtime.dead_letters")
    assert (letter["message_id"], letter["key"], letter["message"]["value"]) == (
        message,
        "task.output",
        {"n": 1},
    )
    assert len(letter["attempts"]) == 1


@pytest.mark.parametrize("value", [1, "x" * 5000])
async def test_k12_taking_drops_deliveries_whose_message_is_gone(db: Any, worker: Worker, value: Any) -> None:
    await worker.subscribe(
        "a.one=task.output", {"name": "b.row", "patterns": ["task.output"], "ordered": True}
    )
    gone, also_gone = await send(db, ("task.output", value), ("task.output", value))
    await db.execute("delete from consciousness_stream where id = any ($1)", [gone, also_gone])
    left = await insert(db, "task.output", value)
    taken = []
    for _ in range(4):
        taken += await worker.take(1)
    assert [each.id for each in taken] == [left, left]
    assert await db.fetchval("select count(*) from runtime.deliveries") == 2


async def test_k12_an_expired_message_is_counted_and_not_delivered(db: Any, worker: Worker) -> None:
    await worker.subscribe(
        "a.one=task.output", {"name": "b.row", "patterns": ["task.output"], "ordered": True}
    )
    stale = {"key": "task.output", "value": 1, "expires_in": 30}
    (expired, kept) = await send(db, stale, {**stale, "expires_in": 300})
    await advance(db, 31)
    taken = [*await worker.take(), *await worker.take()]
    assert [each.id for each in taken] == [kept, kept]
    assert await db.fetchval("select array_agg(expired) from runtime.subscriptions") == [1, 1]
    assert await db.fetchval("select array_agg(outcome) from runtime.runs") == ["expired", "expired"]
    assert await db.fetchval("select processed from consciousness_stream where id = $1", expired)


async def test_k12_no_foreign_key_touches_stream_deliveries_or_runs(db: Any) -> None:
    touched = await db.fetchval(
        "select array_agg(conname::text) from pg_constraint where contype = 'f' and "
        "(conrelid = any ($1::text[]::regclass[]) or confrelid = any ($1::text[]::regclass[]))",
        ["public.consciousness_stream", "runtime.deliveries", "runtime.runs"],
    )
    assert touched is None
