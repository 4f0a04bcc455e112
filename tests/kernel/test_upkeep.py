"""Who keeps the tables small, and how does a subscription end or change its order?"""

from typing import Any

import asyncpg
import pytest

from tests.kernel.driver import Worker, insert, send

pytestmark = pytest.mark.anyio

MAINTAIN = "select public.stream_maintain(worker => $1, retention_seconds => $2, max => $3)"


async def test_k12_one_elected_worker_prunes_in_bounded_batches(
    db: Any, worker: Worker, connect: Any
) -> None:
    await worker.subscribe("a.b=other")
    await send(db, *[("k", number) for number in range(25)])
    await db.execute(
        "update consciousness_stream set created_at = created_at - interval '1 h' where id <= 20"
    )
    async with connect() as connection:
        second = Worker(connection)
        await second.subscribe("a.b=other")
        assert (await connection.fetchval(MAINTAIN, second.id, 60.0, 8))["elected"] is False
        batches = [(await db.fetchval(MAINTAIN, worker.id, 60.0, 8))["pruned"] for _ in range(4)]
        assert batches == [8, 8, 4, 0]
        # The next oldest follows, when the elected one is not seen any more.
        await db.execute(
            "update runtime.workers set seen_at = seen_at - interval '2 min' where id = $1", worker.id
        )
        assert (await connection.fetchval(MAINTAIN, second.id, 60.0, 8))["elected"] is True
    assert await db.fetchval("select count(*) from consciousness_stream") == 5


async def test_without_a_retention_only_dedup_keys_are_forgotten(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.b=other")
    await send(db, *[{"key": "k", "dedup_key": f"d{number}"} for number in range(3)])
    await db.execute("update consciousness_stream set created_at = created_at - interval '1 year'")
    await db.execute("update runtime.dedup set forget_at = clock_timestamp() where dedup_key <> 'd0'")
    answer = await db.fetchval(MAINTAIN, worker.id, None, 100)
    assert (answer["elected"], answer["pruned"], answer["last"]) == (True, 0, None)
    assert await db.fetchval("select count(*) from consciousness_stream") == 3
    assert await db.fetchval("select array_agg(dedup_key) from runtime.dedup") == ["d0"]


async def test_an_orphan_is_removed_with_what_waits_for_it(db: Any, worker: Worker) -> None:
    await worker.subscribe("gone.one=k", "left.two=k")
    first, second = await send(db, ("k", 1), ("k", 2))
    remove = "select public.stream_remove(subscription => $1, dry_run => $2)"
    with pytest.raises(asyncpg.PostgresError, match=r"gone\.one is served by 1 workers"):
        await db.fetchval(remove, "gone.one", False)
    await db.execute("update runtime.workers set seen_at = seen_at - interval '2 min'")
    assert await db.fetchval(remove, "gone.one", True) == {
        "subscription": "gone.one", "waiting": 2, "workers": 0, "removed": False,
    }  # fmt: skip
    assert (await db.fetchval(remove, "gone.one", False))["removed"] is True
    taken = await worker.take()
    assert sorted((each.id, each.subscription) for each in taken) == [
        (first, worker.numbers["left.two"]),
        (second, worker.numbers["left.two"]),
    ]
    await worker.finish(*taken)
    assert await db.fetchval("select bool_and(processed) from consciousness_stream")
    await insert(db, "k", 3)
    assert await db.fetchval("select count(*) from runtime.deliveries") == 1
    with pytest.raises(asyncpg.PostgresError, match=r"there is no subscription 'gone\.one'"):
        await db.fetchval(remove, "gone.one", False)


async def test_a_subscription_belongs_to_the_agent_it_is_named_after(worker: Worker) -> None:
    with pytest.raises(asyncpg.PostgresError, match="cannot belong to agent 'thief'"):
        await worker.subscribe({"name": "victim.one", "agent": "thief", "patterns": ["k"]})


async def test_g8_a_subscription_that_becomes_ordered_keeps_order_from_its_backlog_on(
    db: Any, worker: Worker, connect: Any
) -> None:
    declared = {"name": "a.b", "patterns": ["k.*"], "start": "earliest"}
    await worker.subscribe(declared)
    finished = await insert(db, "k.1", 0)
    await worker.finish(*await worker.take())
    ids = await send(
        db, {"key": "k.1", "value": 1, "priority": -1}, {"key": "k.1", "value": 2, "priority": 1}, ("k.2", 3)
    )
    async with connect() as writing, connect() as connection:
        # A writer that has seen it unordered is still open when it changes.
        transaction = writing.transaction()
        await transaction.start()
        ids.append(await insert(writing, "k.1", 4))
        ordered = Worker(connection)
        await ordered.subscribe({**declared, "ordered": True}, settle=False)
        for _ in range(5):
            assert (await ordered.exchange(settle=True)).more["unsettled"] != []
        assert await ordered.take() == []
        await transaction.commit()
        await ordered.settle()
        seen = []
        while taken := await ordered.take():
            assert len({each.key for each in taken}) == len(taken)
            seen += [each.id for each in taken]
            await ordered.finish(*taken)
    # The history is not read again: what was finished stays so.
    assert finished not in seen
    assert sorted(seen) == sorted(ids)
    assert [number for number in seen if number != ids[2]] == [ids[0], ids[1], ids[3]]
