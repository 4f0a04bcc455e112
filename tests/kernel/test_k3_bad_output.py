"""K3: an exchange that holds bad output is refused as a whole and changes nothing, so it can be sent again in parts."""

from typing import Any

import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, advance, insert, send
from tests.kernel.schedule import started, transaction, until_waiting

pytestmark = pytest.mark.anyio

BAD_EMITS = {
    "bad key": ([{"key": "no such key", "value": 1}], "22023"),
    "no key": ([{"value": 1}], "22023"),
    "a zero character": ([{"key": "task.done", "value": "\0"}], "22P05"),
    "half a character": ([{"key": "task.done", "value": "\ud800"}], "22P02"),
    "no number": ([{"key": "task.done", "value": float("nan")}], "22P02"),
    "no such class": ([{"key": "task.done", "value": 1, "priority": 7}], "23514"),
    "long dedup_key": ([{"key": "task.done", "value": 1, "dedup_key": "x" * 256}], "23514"),
    "no time": ([{"key": "task.done", "value": 1, "deliver_at": "soon"}], "22007"),
    "no array": ({"key": "task.done"}, "22023"),
    "no object": (["task.done"], "22023"),
}


async def state(db: Any) -> Any:
    """Everything an exchange could change, but for the heartbeat."""
    return await db.fetch(
        "select to_jsonb(d) from runtime.deliveries d union all select to_jsonb(m) from consciousness_stream m "
        "union all select to_jsonb(r) from runtime.runs r union all select to_jsonb(p) from runtime.pumps p "
        "union all select to_jsonb(l) from runtime.dead_letters l union all select to_jsonb(k) from runtime.dedup k"
    )


async def test_k3_one_bad_emit_refuses_the_exchange_and_changes_nothing(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    await send(db, *(("task.output", n) for n in range(4)))
    bad, good, failing, running = await worker.take()
    before = await state(db)
    fine = [{"key": "task.done", "value": 1, "dedup_key": "once"}]
    for name, (emits, code) in BAD_EMITS.items():
        with pytest.raises(asyncpg.PostgresError) as caught:
            await worker.exchange(
                done=[good.report(emits=fine), bad.report(emits=emits)],
                failed=[failing.report(outcome="dead", error="no")],
                renew=[running.report()],
                want=1,
            )
        assert caught.value.sqlstate == code, name
        assert code[:2] in ("22", "23")
        assert await state(db) == before, name

    # One by one, the one that fails alone becomes a failed attempt with that error.
    assert (await worker.finish(good, emits=fine)).refused == set()
    assert (await worker.fail(bad, error=str(caught.value))).refused == set()
    assert await db.fetchval("select count(*) from consciousness_stream where key = 'task.done'") == 1
    assert await db.fetchval("select attempts from runtime.deliveries where message_id = $1", bad.id) == 1


async def test_g4_k3_emits_come_with_the_finish_in_their_order_and_name_their_cause(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    (taken,) = await worker.take()
    emits = [
        {"key": f"task.part{n}", "value": {"n": n}, "agent": "somebody else", "parent_id": 0}
        for n in range(12)
    ]
    async with transaction(worker.connection) as finishing:
        await worker.finish(taken, emits=emits)
        assert await db.fetchval("select count(*) from consciousness_stream") == 1
        assert await db.fetchval("select count(*) from runtime.deliveries") == 1
        await finishing.rollback()
    assert await db.fetchval("select count(*) from consciousness_stream") == 1
    await worker.finish(taken, emits=emits)
    rows = await db.fetch("select * from consciousness_stream where id <> $1 order by id", message)
    assert [row["value"]["n"] for row in rows] == list(range(12))
    assert {(row["agent"], row["parent_id"], row["correlation_id"]) for row in rows} == {
        ("a", message, str(message))
    }


async def test_k3_an_exchange_gives_up_a_lock_that_another_writer_keeps(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    (taken,) = await worker.take()
    settings = await db.fetchval("select proconfig from pg_proc where proname = 'stream_exchange'")
    assert "lock_timeout=2s" in settings
    emits = [{"key": "task.done", "value": 1, "dedup_key": "contended"}]
    async with connect() as writer, transaction(writer) as writing:
        await insert(writer, "task.done", 1, dedup_key="contended")
        signature = await db.fetchval(
            "select oid::regprocedure::text from pg_proc where proname = 'stream_exchange'"
        )
        await db.execute(f"alter function {signature} set lock_timeout = '50ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await worker.finish(taken, emits=emits)
        # Without the bound it stands still for as long as somebody else's transaction does.
        await db.execute(f"alter function {signature} reset lock_timeout")
        async with started(lambda: worker.finish(taken, emits=emits)) as finishing:
            await until_waiting(db, worker.connection)
            assert not finishing.has_ended
            await writing.rollback()
            assert (await finishing.outcome()).refused == set()
    assert await db.fetchval("select count(*) from consciousness_stream where key = 'task.done'") == 1


async def test_k3_renewals_are_lost_with_bad_output_so_they_travel_alone(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    await send(db, ("task.output", 1), ("task.output", 2))
    bad, running = await worker.take()
    await advance(db, 25)
    with pytest.raises(asyncpg.PostgresError):
        await worker.exchange(done=[bad.report(emits=[{"key": "?", "value": 1}])], renew=[running.report()])
    left = "select extract(epoch from visible_at - clock_timestamp()) from runtime.deliveries where message_id = $1"
    assert await db.fetchval(left, running.id) < 6
    assert (await worker.exchange(renew=[running.report()])).more["lost"] == []
    assert await db.fetchval(left, running.id) > 20
