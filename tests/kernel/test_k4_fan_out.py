"""K4: who gets a message is found by looking up the patterns a key could have, once for all rows of an insert."""

import itertools
from typing import Any

import asyncpg
import pytest

from runtime.keys import matches
from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, insert, send
from tests.kernel.plans import explained
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

SEVERAL = "a.many=task.output,task.*,*.output,task.>,>"


async def test_g1_k4_a_subscription_that_matches_by_several_patterns_gets_a_message_once(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe(SEVERAL)
    message = await insert(db, "task.output", 1)
    assert [each.id for each in await worker.take()] == [message]


async def test_k4_without_distinct_such_a_message_is_refused(db: Any, worker: Worker) -> None:
    await worker.subscribe(SEVERAL)
    await switch_off(db, "runtime.route", "select distinct p.subscription", "select p.subscription")
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(db, "task.output", 1)


async def test_g1_k4_every_way_to_insert_reaches_everyone_who_matches(db: Any, worker: Worker) -> None:
    patterns = ["a", "a.b", "a.*", "*.b", "*", ">", "a.>", "*.>", "a.*.c", "*.*.*", "a.b.>", "b.*.>", "c.c.c"]
    numbers = await worker.subscribe(*[f"a.p{place}={each}" for place, each in enumerate(patterns)])
    keys = [".".join(each) for size in (1, 2, 3) for each in itertools.product("abc", repeat=size)]
    await send(db, *[(key, None) for key in keys])
    await db.execute("insert into consciousness_stream (key) select unnest($1::text[])", keys)
    await db.copy_records_to_table("consciousness_stream", columns=["key"], records=[(key,) for key in keys])
    await db.execute("insert into consciousness_stream (key) select 'a.b' where false")
    rows = await db.fetch(
        "select d.subscription, m.key, count(*) from runtime.deliveries d "
        "join consciousness_stream m on m.id = d.message_id group by 1, 2"
    )
    assert {(row[0], row[1]): row[2] for row in rows} == {
        (numbers[f"a.p{place}"], key): 3
        for place, pattern in enumerate(patterns)
        for key in keys
        if matches(pattern, key)
    }


async def test_k4_a_key_has_its_candidates_and_no_more(db: Any) -> None:
    for segments in range(1, 9):
        candidates = await db.fetchval("select runtime.candidates($1)", ".".join("abcdefgh"[:segments]))
        assert len(set(candidates)) == len(candidates) == 2 ** (segments + 1) - 1


async def test_k4_one_statement_with_indexes_for_all_keys(
    connect_as_superuser: Connect, worker: Worker
) -> None:
    await worker.subscribe(
        "a.exact=k0.x,k1.x", "b.one=k2.*", "c.all=k3.>", *[f"d.n{n}=other.n{n}" for n in range(50)]
    )
    async with connect_as_superuser() as db:
        await db.execute("analyze")
        async with explained(db) as plans:
            await send(db, *[(f"k{n}.x", n) for n in range(100)])
        (route,) = plans.of("runtime.candidates(k.key)")
        assert route.scans_of("patterns") == {"patterns_pkey"}
        assert route.scans_of("subscriptions") == {"subscriptions_pkey"}
        assert "~" not in route.statement
        assert "like" not in route.statement
        # No statement is run for each key: one tells whether the message is alone, two do the work.
        assert len([plan for plan in plans.all if "new_messages" in plan.statement]) == 3
        assert await db.fetchval("select count(*) from runtime.deliveries") == 4


async def test_k4_who_gets_a_key_is_worked_out_once_and_then_looked_up(
    connect_as_superuser: Connect, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.>")
    async with connect_as_superuser() as db:
        await insert(db, "task.a", 1)
        async with explained(db) as plans:
            await send(db, ("task.a", 2), ("task.b", 3), ("task.a", 4))
        (looked_up,) = plans.of("left join runtime.routes")
        assert looked_up.scans_of("routes") == {"routes_pkey"}
        assert len(plans.of("runtime.candidates(k.key)")) == 1
        async with explained(db) as plans:
            await send(db, ("task.a", 5), ("task.b", 6), ("task.a", 7))
        assert plans.of("runtime.candidates") == []
    assert [each.value for each in await worker.take()] == [1, 2, 3, 4, 5, 6, 7]


ALONE = {
    "plain": "'task.output', '1', null, 0, null",
    "an exact key less": "'task.other', '1', null, 0, null",
    "nobody's": "'nobody', '1', null, 0, null",
    "delayed": "'task.output', '1', clock_timestamp() + interval '1 hour', 0, null",
    "over its time already": "'task.output', '1', clock_timestamp() - interval '1 hour', 0, null",
    "high": "'task.output', '1', null, 1, null",
    "low": "'task.output', '1', null, -1, null",
    "heavy": "'task.output', to_jsonb(repeat('x', 100000)), null, 0, null",
    "stored once": "'task.output', '1', null, 0, 'once' || clock_timestamp()",
}
_WRITE = "insert into consciousness_stream (key, value, deliver_at, priority, dedup_key) values "
_MADE = """
select s.name, d.visible_at is null as fresh, round(extract(epoch from d.visible_at - m.created_at)) as seconds,
       d.priority, d.marks, d.sole, d.heavy, d.ordered_key,
       exists (select from runtime.dedup e where e.message_id = m.id) as kept
from consciousness_stream m left join runtime.deliveries d on d.message_id = m.id
left join runtime.subscriptions s on s.id = d.subscription
where m.key <> 'other' and m.id > $1 order by s.name, m.id
"""


@pytest.mark.parametrize("what", ALONE)
async def test_k4_a_message_alone_gets_the_deliveries_it_gets_among_others(
    db: Any, worker: Worker, what: str
) -> None:
    await worker.subscribe("a.one=task.output", "b.all=task.>", "c.order=task.*")
    await db.execute("update runtime.subscriptions set ordered = true where name = 'c.order'")
    # What is not written down goes the way of many.
    await db.execute(f"{_WRITE} ({ALONE[what]})")
    before = await db.fetchval("select max(id) from consciousness_stream")
    await db.execute(f"{_WRITE} ({ALONE[what]})")
    alone = [tuple(row) for row in await db.fetch(_MADE, before)]
    before = await db.fetchval("select max(id) from consciousness_stream")
    await db.execute(f"{_WRITE} ({ALONE[what]}), ('other', '1', null, 0, null)")
    among = [tuple(row) for row in await db.fetch(_MADE, before)]
    assert alone == among
    assert len(alone) == {"nobody's": 1, "an exact key less": 2}.get(what, 3)


CHANGES = {
    "another subscription": [{"name": "b.two", "patterns": ["task.*"]}],
    "a pattern more": [{"name": "a.one", "patterns": ["other", "task.output"]}],
    "a pattern less": [{"name": "a.all", "patterns": ["nothing"]}],
    "newly ordered": [{"name": "a.all", "patterns": ["task.>"], "ordered": True}],
    "no longer marking": [{"name": "a.exact", "patterns": ["task.output"], "marks_processed": False}],
}


async def fan_out_after(db: Any, connect: Connect, worker: Worker, change: str) -> set[tuple[Any, ...]]:
    """Who gets the next message under a key that was written before the change."""
    await worker.subscribe("a.one=other", "a.all=task.>", "a.exact=task.output")
    await insert(db, "task.output", "before")
    async with connect() as later:
        await Worker(later).subscribe(*CHANGES[change])
    message = await insert(db, "task.output", "after")
    rows = await db.fetch(
        "select s.name, d.ordered_key, d.marks, d.sole from runtime.deliveries d "
        "join runtime.subscriptions s on s.id = d.subscription where d.message_id = $1",
        message,
    )
    return {tuple(row) for row in rows}


@pytest.mark.parametrize("change", CHANGES)
async def test_g1_k4_what_was_looked_up_before_a_change_is_worth_nothing_after_it(
    db: Any, connect: Connect, worker: Worker, change: str
) -> None:
    everyone = {("a.all", None, False, False), ("a.exact", None, True, True)}
    assert await fan_out_after(db, connect, worker, change) == {
        "another subscription": everyone | {("b.two", None, False, False)},
        "a pattern more": {
            ("a.all", None, False, False), ("a.exact", None, True, False), ("a.one", None, True, False)
        },
        "a pattern less": {("a.exact", None, True, True)},
        "newly ordered": {("a.all", "task.output", False, False), ("a.exact", None, True, True)},
        "no longer marking": {("a.all", None, False, False), ("a.exact", None, False, False)},
    }[change]  # fmt: skip


async def test_k4_without_a_new_generation_a_new_subscription_would_be_missed(
    db: Any, connect: Connect, worker: Worker
) -> None:
    await switch_off(db, "runtime.reroute", "generation = r.generation + 1", "generation = r.generation")
    found = await fan_out_after(db, connect, worker, "another subscription")
    assert "b.two" not in {name for name, *_ in found}


async def test_g1_k4_a_subscriber_s_own_transaction_goes_by_its_new_patterns(
    db: Any, connect: Connect, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    newcomer = Worker(db)
    async with db.transaction():
        numbers = await newcomer.subscribe("b.two=task.output", settle=False)
        message = await insert(db, "task.output", 2)
    found = await db.fetch("select subscription from runtime.deliveries where message_id = $1", message)
    assert {row[0] for row in found} == {*worker.numbers.values(), *numbers.values()}


async def test_k4_nobody_waits_for_what_an_open_writer_wrote_down(
    db: Any, connect: Connect, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.>")
    async with connect() as writer, writer.transaction():
        await insert(writer, "task.a", 1)
        await db.execute("set lock_timeout = '1ms'")
        await insert(db, "task.a", 2)
        await insert(db, "task.b", 3)
    assert [each.value for each in await worker.take()] == [1, 2, 3]


async def test_k4_what_is_written_down_has_a_bounded_place(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>")
    for first in range(0, 10_000, 100):
        await send(db, *[(f"task.n{n}", n) for n in range(first, first + 100)])
    assert await db.fetchval("select count(*) from runtime.routes") <= 4096
    assert await db.fetchval("select count(*) from runtime.deliveries") == 10_000


async def test_k4_a_key_that_shares_its_place_with_another_is_not_taken_for_it(
    db: Any, worker: Worker
) -> None:
    one, other = await db.fetchrow(
        "select min('k.n' || n), max('k.n' || n) from generate_series(1, 20000) as n "
        "group by hashtext('k.n' || n) & 4095 having count(*) > 1 limit 1"
    )
    await worker.subscribe(f"a.one={one}", f"b.two={other}")
    for key in (one, other, one, other):
        await insert(db, key, key)
    taken = await worker.take()
    assert {(each.subscription, each.value) for each in taken} == {
        (worker.numbers["a.one"], one), (worker.numbers["b.two"], other)
    }  # fmt: skip
    assert len(taken) == 4


async def test_k4_the_key_of_a_message_does_not_change(db: Any) -> None:
    message = await insert(db, "task.output", 1)
    await db.execute("update consciousness_stream set key = key, processed = true where id = $1", message)
    with pytest.raises(asyncpg.PostgresError, match="does not change") as refused:
        await db.execute("update consciousness_stream set key = 'task.other' where id = $1", message)
    assert refused.value.sqlstate == "55000"
