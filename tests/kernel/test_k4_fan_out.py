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
    await switch_off(db, "runtime.fan_out", "select distinct p.subscription", "select p.subscription")
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
        (fan_out,) = plans.of("insert into runtime.deliveries")
        assert fan_out.scans_of("patterns") == {"patterns_pkey"}
        assert fan_out.scans_of("subscriptions") == {"subscriptions_pkey"}
        assert "~" not in fan_out.statement
        assert "like" not in fan_out.statement
        # No statement is run for each key, but for the computing of its candidates.
        assert len([plan for plan in plans.all if "new_messages" in plan.statement]) == 2
        assert await db.fetchval("select count(*) from runtime.deliveries") == 4


async def test_k4_the_key_of_a_message_does_not_change(db: Any) -> None:
    message = await insert(db, "task.output", 1)
    await db.execute("update consciousness_stream set key = key, processed = true where id = $1", message)
    with pytest.raises(asyncpg.PostgresError, match="does not change") as refused:
        await db.execute("update consciousness_stream set key = 'task.other' where id = $1", message)
    assert refused.value.sqlstate == "55000"
