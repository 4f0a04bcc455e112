"""K6: is what is due found cheaply, and all of it in the end?"""

from random import Random
from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Answer, Worker, advance, insert, send
from tests.kernel.mutations import broken
from tests.kernel.plans import Plans, explained
from tests.kernel.schedule import transaction
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


async def test_g1_k6_what_commits_late_below_the_cursor_is_found_without_it(
    db: Any, worker: Worker, connect: Connect
) -> None:
    numbers = await worker.subscribe("a.one=task.>", "b.two=other")
    async with connect() as writer, transaction(writer) as writing:
        late = await insert(writer, "task.a", "late")
        first, _second = await send(db, ("task.a", 1), ("task.a", 2))
        looked = await worker.exchange(want=1)
        assert looked.ids == [first]
        cursors = looked.more["cursors"]
        assert cursors == {str(numbers["a.one"]): first}
        await writing.commit()
    beyond = await worker.exchange(want={"a.one": 10}, cursors=cursors)
    assert beyond.ids == [first + 1]
    assert beyond.more["cursors"] == {str(numbers["a.one"]): first + 1}
    # It found too little: the next look starts from the lowest again.
    assert (await worker.exchange(want=10)).ids == [late]


async def test_k6_classes_go_before_ids_and_before_the_cursor(db: Any, worker: Worker) -> None:
    (number,) = (await worker.subscribe("a.one=task.>")).values()

    async def wave(n: int) -> list[int]:
        return await send(db, *[{"key": "task.a", "value": n, "priority": p} for p in (0, -1, 1, 0)])

    (normal1, low, high, normal2), (_, low2, high2, _) = await wave(1), await wave(2)
    looked = await worker.exchange(want=3)
    assert looked.ids == [high, high2, normal1]
    cursors = looked.more["cursors"]
    assert cursors == {str(number): normal1}
    (urgent,) = await send(db, {"key": "task.a", "value": 3, "priority": 1})
    looked = await worker.exchange(want=2, cursors=cursors)
    assert looked.ids == [urgent, normal2]
    assert [each.id for each in await worker.take()][-2:] == [low, low2]


async def test_k6_a_paused_subscription_is_skipped_in_taking_and_in_next_due(db: Any, worker: Worker) -> None:
    await worker.subscribe(
        "a.one=task.>", "b.two=task.>", {"name": "c.three", "patterns": ["task.>"], "ordered": True}
    )
    retrying, delayed = await send(db, ("task.a", 1), {"key": "task.a", "value": 2, "delay": 20})
    await worker.fail(*await worker.take(), delay=10)
    for name in worker.numbers:
        await db.fetchval("select stream_pause($1)", name)
    fresh = await insert(db, "task.b", 3)
    looked = await worker.exchange(want=10, due=True)
    assert (looked.taken, looked.more["next_due"]) == ([], None)
    await advance(db, 30)
    assert await worker.take() == []
    await db.fetchval("select stream_resume('b.two')")
    assert sorted(each.id for each in await worker.take()) == [retrying, delayed, fresh]
    await db.fetchval("select stream_resume('c.three')")
    # The delayed one stands behind its lower one; the other key goes.
    assert sorted(each.id for each in await worker.take()) == [retrying, fresh]


async def test_k6_what_is_due_is_read_only_when_asked_for(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    first, second = await send(db, *[{"key": "task.a", "value": n, "delay": 10 * n} for n in (1, 2)])
    looked = await worker.exchange(want=10, due=True)
    assert looked.taken == []
    assert 5 < looked.more["next_due"] <= 10
    await advance(db, 10)
    fresh = await insert(db, "task.b", 3)
    looked = await worker.exchange(want=10)
    assert looked.ids == [fresh]
    assert "next_due" not in looked.more
    looked = await worker.exchange(want=10, due=True)
    assert looked.ids == [first]
    assert 5 < looked.more["next_due"] <= 10
    assert second not in looked.ids

    await advance(db, 10)
    await send(db, *[{"key": "task.a", "value": n, "deliver_at": "2000-01-01"} for n in range(3)])
    await db.execute("update runtime.deliveries set visible_at = '2000-01-01' where visible_at is null")
    # As many as were wanted were due: look again at once.
    assert (await worker.exchange(want=2, due=True)).more["next_due"] == 0


async def crowd_and_fresh(db: Any, due: int, fresh: int) -> tuple[set[int], set[int]]:
    """So many deliveries that came due at once, and fresh ones written after them; returns the ids of both."""
    await db.execute(
        "insert into consciousness_stream (key) select 'task.due' from generate_series(1, $1)", due
    )
    await db.execute("update runtime.deliveries set visible_at = clock_timestamp()")
    await db.execute(
        "insert into consciousness_stream (key) select 'task.fresh' from generate_series(1, $1)", fresh
    )
    rows = await db.fetch("select id, key from consciousness_stream")
    return (
        {row["id"] for row in rows if row["key"] == "task.due"},
        {row["id"] for row in rows if row["key"] == "task.fresh"},
    )


async def test_g6_k6_fresh_deliveries_are_taken_beside_a_crowd_of_due_ones(db: Any, worker: Worker) -> None:
    (number,) = (await worker.subscribe("a.one=task.>")).values()
    due, fresh = await crowd_and_fresh(db, 700, 10)
    looked = await worker.exchange(want=10, due=True)
    assert (len(due & set(looked.ids)), len(fresh & set(looked.ids))) == (5, 5)
    assert looked.more["next_due"] == 0
    # In a large room the fresh ones come with few of the crowd, and the rest of it with the next looks.
    looked = await worker.exchange(want=800, due=True)
    assert (len(due & set(looked.ids)), len(fresh & set(looked.ids))) == (200, 5)
    assert (looked.more["next_due"], looked.more["full"]) == (0, [number])
    looked = await worker.exchange(want=800, due=True)
    assert len(looked.ids) == 495
    assert (looked.more["next_due"], looked.more["full"]) != (0, [number])


async def test_g6_k6_neither_kind_waits_for_the_other_where_one_is_taken_at_a_time(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.>")
    due, fresh = await crowd_and_fresh(db, 60, 60)
    looks = [await worker.exchange(want=1, due=True) for _ in range(60)]
    taken = {id_ for looked in looks for id_ in looked.ids}
    assert len(taken) == 60
    assert taken & due
    assert taken & fresh
    # What was not looked at may be due, and is asked about.
    assert {looked.more["next_due"] for looked in looks} == {0}
    while looked := await worker.take(1):
        taken |= {each.id for each in looked}
    assert taken == due | fresh


async def test_k6_without_a_share_of_their_own_fresh_deliveries_wait_behind_the_crowd(
    db: Any, worker: Worker
) -> None:
    await broken(db, "K6 fresh ones wait behind a crowd")
    await worker.subscribe("a.one=task.>")
    _, fresh = await crowd_and_fresh(db, 700, 10)
    for _ in range(3):
        assert not fresh & {each.id for each in await worker.take(200)}


async def test_g6_k6_what_is_ordered_fits_before_what_is_large(db: Any, worker: Worker) -> None:
    numbers = await worker.subscribe(
        "a.large=large", {"name": "b.row", "patterns": ["small"], "ordered": True}
    )
    await send(db, *[("large", "x" * 3000) for _ in range(10)], *[("small", n) for n in range(2)])
    answer = await worker.exchange(want=10, max_bytes=7000)
    assert [each.subscription for each in answer.taken].count(numbers["b.row"]) == 1
    assert len(answer.taken) == 3


async def test_k6_an_answer_is_bounded_in_bytes(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>", {"name": "b.two", "patterns": ["task.>"], "ordered": True})
    # What compresses well is as long on the wire as what does not.
    noise = Random(6).randbytes(1500).hex()
    ids = await send(db, *[(f"task.k{n}", noise if n % 2 else "x" * 3000) for n in range(4)])

    async def look() -> Answer:
        return await worker.exchange(want=10, due=True, max_bytes=7000)

    looks = [await look() for _ in range(4)]
    assert [len(each.taken) for each in looks] == [2, 2, 2, 2]
    assert all(each.more["full"] for each in looks[:3])
    assert {each.attempts + each.crashes for look in looks for each in look.taken} == {0}
    assert sorted(message for each in looks for message in each.ids) == sorted(2 * ids)
    (huge,) = await send(db, ("task.huge", "x" * 20000))
    assert [(await look()).ids for _ in range(2)] == [[huge], [huge]]
    # Values nobody can read any more take no room, and do not come again and again.
    await send(db, *[(f"task.gone{n}", "x" * 3000) for n in range(4)])
    await db.execute("delete from consciousness_stream where key like 'task.gone%'")
    for _ in range(2):
        assert (await look()).taken == []
    assert await db.fetchval("select count(*) from runtime.deliveries where lease is null") == 0


async def taking(worker: Worker, db: Any, **options: Any) -> Plans:
    """The plans of an exchange, made as the superuser so that they can be seen."""
    sharp = Worker(db, id=worker.id, numbers=worker.numbers)
    async with explained(db) as plans:
        assert (await sharp.exchange(want=5, **options)).taken
    return plans


async def test_k6_taking_reads_the_index_of_what_it_takes(
    connect_as_superuser: Connect, worker: Worker
) -> None:
    (number,) = (await worker.subscribe("a.one=task.>")).values()
    async with connect_as_superuser() as db:
        await db.execute(
            "insert into consciousness_stream (key) select 'task.a' from generate_series(1, 3000)"
        )
        await db.execute(
            "update runtime.deliveries set visible_at = clock_timestamp() where message_id <= 1000"
        )
        await db.execute("analyze")

        plans = await taking(worker, db, cursors={str(number): 2000})
        (fresh,) = plans.of("f.visible_at is null and f.message_id + 0 > class.past")
        assert fresh.scans_of("deliveries") == {"deliveries_fresh", "Tid Scan"}
        assert "(message_id + 0) > " in fresh.conditions_on("deliveries_fresh")
        # The order is the index's own.
        assert "message_id" not in fresh.sorted_by
        assert not [plan for plan in plans.all if "deliveries_due" in plan.scans_of("deliveries")]

        plans = await taking(worker, db, due=True)
        # Half of the room, and what the fresh ones have left of the rest.
        dues = plans.of("select one.ctid as place from runtime.deliveries one where one.sub")
        assert dues
        for due in dues:
            assert due.scans_of("deliveries") == {"deliveries_due", "Tid Scan"}
            assert "visible_at" not in due.sorted_by

        await db.execute(
            "update runtime.deliveries set crashes = 2, visible_at = clock_timestamp() where message_id = 3000"
        )
        alone = await taking(worker, db, due=True, alone=True)
        assert [plan for plan in alone.all if "order by d.visible_at" in plan.statement]
        for plan in plans.all + alone.all:
            assert "Seq Scan" not in plan.scans_of("deliveries") | plan.scans_of("consciousness_stream")
            # Neither ended leases nor what is to be taken alone is searched for among all that is due, and nothing that
            # is due among all that is delayed or parked.
            if "deliveries_due" in plan.scans_of("deliveries"):
                assert "CASE" in plan.conditions_on("deliveries_due")
                assert "visible_at" in plan.conditions_on("deliveries_due")


async def test_k6_taking_for_many_readers_of_a_message_reads_only_what_it_takes(
    connect_as_superuser: Connect, worker: Worker
) -> None:
    await worker.subscribe(*[f"a.reader{n}=task.a" for n in range(60)])
    async with connect_as_superuser() as db:
        await db.execute(
            "insert into consciousness_stream (key) select 'task.a' from generate_series(1, 100)"
        )
        # Written message by message, so that the primary key has the order of the table and its scan looks cheap.
        await db.execute("analyze")
        plans = await taking(worker, db)
    (fresh,) = plans.of("f.visible_at is null and f.message_id + 0 > class.past")
    assert "subscription = " in fresh.conditions_on("deliveries_fresh")


async def test_k6_a_table_that_was_empty_when_it_was_looked_at_is_not_read_as_a_whole(
    connect_as_superuser: Connect, connect: Connect, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.>", {"name": "b.two", "patterns": ["turn.>"], "ordered": True})
    insert_many = (
        "insert into consciousness_stream (key) "
        "select case when n % 2 = 0 then 'task.a' else 'turn.k' || n % 1000 end from generate_series(1, 6000) n"
    )
    async with connect_as_superuser() as db, connect() as old:
        sharp = Worker(db, id=worker.id, numbers=worker.numbers)
        async with old.transaction(isolation="repeatable_read"):
            # While somebody may still see them, the dead rows stay: no row in many pages.
            await old.fetchval("select count(*) from runtime.deliveries")
            await db.execute(insert_many)
            await db.execute("delete from runtime.deliveries")
            await db.execute("vacuum analyze runtime.deliveries")
            await db.execute(insert_many)
            async with explained(db, analyze=True) as ended:
                taken = (await sharp.exchange(want=50, due=True)).taken
                await sharp.exchange(renew=[each.report() for each in taken])
                await sharp.finish(*taken[:40])
                await sharp.fail(*taken[40:60], delay=10)
                await sharp.fail(*taken[60:80], outcome="dead")
            # The worker of the rest dies, and some of it expires.
            await db.execute(
                "update runtime.deliveries set visible_at = clock_timestamp() where lease is not null"
            )
            expired = [each.id for each in taken[80:90]]
            await db.execute(
                "update consciousness_stream set expires_at = clock_timestamp() where id = any ($1)", expired
            )
            async with explained(db, analyze=True) as crashed:
                again = (await sharp.exchange(want=50, due=True)).ids
    assert len(taken) == 100
    assert {each.id for each in taken[90:]} <= set(again)
    assert not set(expired) & set(again)
    for plan in (*ended.all, *crashed.all):
        assert plan.rows_read("deliveries") <= 500, plan.statement


async def test_k6_an_ordered_key_is_looked_up_in_an_index(
    connect_as_superuser: Connect, worker: Worker
) -> None:
    await worker.subscribe({"name": "a.one", "patterns": ["task.>"], "ordered": True})
    async with connect_as_superuser() as db:
        await db.execute(
            "insert into consciousness_stream (key) select 'task.k' || n % 100 from generate_series(1, 3000) n"
        )
        await db.execute("analyze")
        plans = await taking(worker, db, due=True)
    (heads,) = plans.of("distinct d.ordered_key")
    assert heads.scans_of("deliveries") == {"deliveries_ordered", "deliveries_pkey"}
    for plan in plans.all:
        assert "Seq Scan" not in plan.scans_of("deliveries")
        assert all(
            "message_id" in plan.conditions_on(index) or "ordered_key" in plan.conditions_on(index)
            for index in plan.scans_of("deliveries") & {"deliveries_pkey", "deliveries_ordered"}
        )


async def test_k6_what_comes_due_while_an_exchange_is_taking_is_due_now(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    await send(db, ("task.a", 1))
    await worker.fail(*await worker.take(), delay=5)
    # As on a busy machine: it takes a while from the taking to the question what is due next.
    until_due = "(select extract(epoch from max(visible_at) - clock_timestamp()) from runtime.deliveries)"
    await switch_off(
        db,
        "runtime.next_due_seconds",
        "begin\n",
        f"begin\n    perform pg_sleep(greatest(0, {until_due}) + 0.1);\n",
    )
    looked = await worker.exchange(want=1, due=True)
    assert looked.ids == []
    assert looked.more["next_due"] == 0
