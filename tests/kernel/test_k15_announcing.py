"""K15: is the right sleeper told, seldom, of little, and never at a writer's cost?"""

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from runtime.wakeups.notify import EVERYBODY
from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, advance, insert, send
from tests.kernel.ears import Ears, ears
from tests.kernel.schedule import transaction
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

# So long that no test is ever too slow for it. What is called is called again after that.
CALL_SECONDS = 600
LATER = CALL_SECONDS + 1


@pytest.fixture(autouse=True)
async def _call_seconds(db: Any) -> None:
    await db.execute("update runtime.policy set call_seconds = $1", CALL_SECONDS)


@pytest.fixture
async def crowd(connect: Connect) -> AsyncIterator[list[Worker]]:
    """Five workers, reached by NOTIFY, for the subscriptions a.task and b.job."""
    async with AsyncExitStack() as stack:
        workers = [Worker(await stack.enter_async_context(connect())) for _ in range(5)]
        for worker in workers:
            await worker.subscribe("a.task=task.>", "b.job=job.>", announce=["notify"])
        yield workers


@pytest.fixture
async def hearing(db: Any, crowd: list[Worker]) -> Ears:
    """Ears for all of them."""
    return await ears(db, *crowd)


async def test_k15_only_sleepers_are_told_once_for_a_transaction_and_key(
    crowd: list[Worker], hearing: Ears, connect: Connect
) -> None:
    asleep = crowd[0]
    async with connect() as writer:
        await insert(writer, "task.a", 1)
        assert await hearing.heard() == []
        for taken in await asleep.take():
            await asleep.finish(taken)
        await asleep.fall_asleep()

        async with transaction(writer):
            for _ in range(3):
                await insert(writer, "task.a", 2)
        assert await hearing.heard() == [asleep.channel]
        async with transaction(writer) as writing:
            await insert(writer, "task.a", 3)
            await writing.rollback()
        await insert(writer, "other.a", 4)
        assert await hearing.heard() == []
        await advance(writer, LATER)
        async with transaction(writer):
            inner = writer.transaction()
            await inner.start()
            await insert(writer, "task.a", 5)
            await inner.rollback()
            # What was taken back was not said.
            await insert(writer, "task.a", 6)
        assert await hearing.heard() == [asleep.channel]

        # A look without lying down again ends its sleep, and while it is awake nobody tells it anything.
        await asleep.exchange(want=0)
        await insert(writer, "task.a", 7)
        assert await hearing.heard() == []


async def test_k15_two_of_many_at_random(crowd: list[Worker], hearing: Ears, db: Any) -> None:
    for worker in crowd:
        await worker.fall_asleep()
    told: Counter[str] = Counter()
    for n in range(30):
        await insert(db, "task.a", n)
        heard = await hearing.heard()
        assert len(heard) == len(set(heard)) == 2
        told.update(heard)
        await advance(db, LATER)
    assert set(told) == {worker.channel for worker in crowd}


async def test_k15_who_is_called_is_not_called_again_until_it_has_looked_or_the_call_was_lost(
    crowd: list[Worker], hearing: Ears, db: Any, connect: Connect
) -> None:
    sleeper = crowd[0]
    await sleeper.fall_asleep()
    async with connect() as writer, connect() as other:
        async with transaction(writer):
            await insert(writer, "task.a", 1)
            # A call that is not committed yet is nobody's but its own transaction's.
            await insert(other, "task.b", 2)
            await insert(writer, "task.c", 3)
        assert await hearing.heard() == [sleeper.channel] * 2
    await insert(db, "job.a", 4)
    await insert(db, "task.a", 5)
    assert await hearing.heard() == []
    await advance(db, LATER)
    await insert(db, "task.a", 6)
    assert await hearing.heard() == [sleeper.channel]
    assert len(await sleeper.take(2, sleep=True, stay=True)) == 3
    await insert(db, "task.a", 7)
    assert await hearing.heard() == [sleeper.channel]


async def test_k15_a_call_that_was_taken_back_was_none(
    crowd: list[Worker], hearing: Ears, db: Any, connect: Connect
) -> None:
    await crowd[0].fall_asleep()
    async with connect() as writer, transaction(writer) as writing:
        await insert(writer, "task.a", 1)
        await writing.rollback()
    await insert(db, "task.a", 2)
    assert await hearing.heard() == [crowd[0].channel]


async def test_k15_two_that_are_called_are_enough(crowd: list[Worker], hearing: Ears, db: Any) -> None:
    for worker in crowd:
        await worker.fall_asleep({"a.task": 1, "b.job": 0} if worker is crowd[0] else 1)
    await insert(db, "task.a", 1)
    assert len(await hearing.heard()) == 2
    await insert(db, "task.a", 2)
    assert await hearing.heard() == []


async def test_k15_with_room_for_something_else_a_called_sleeper_does_not_count(
    crowd: list[Worker], hearing: Ears, db: Any
) -> None:
    tasks, jobs = crowd[:2]
    await tasks.fall_asleep({"a.task": 1, "b.job": 0})
    await jobs.fall_asleep({"a.task": 0, "b.job": 1})
    await insert(db, "task.a", 1)
    await insert(db, "job.a", 2)
    assert await hearing.heard() == [tasks.channel, jobs.channel]


async def told(superuser: Any) -> list[Any]:
    """What was broadcast, and forget it."""
    return list(
        await superuser.fetch(
            "delete from realtime.messages returning topic, event, payload, private, extension"
        )
    )


async def test_k15_a_key_is_announced_to_whom_it_concerns(
    worker: Worker, connect: Connect, connect_as_superuser: Connect
) -> None:
    async with connect() as connection, connect_as_superuser() as superuser:
        other = Worker(connection)
        for each in (worker, other):
            await each.subscribe("a.task=task.>", "b.job=job.>", announce=["realtime"])
        await worker.fall_asleep({"a.task": 1, "b.job": 0})
        await other.fall_asleep({"a.task": 0, "b.job": 1})
        async with transaction(superuser):
            await insert(superuser, "task.a", 1)
            await send(superuser, ("task.a", 2), ("job.a", 3))
        # Each has room for one of them only, and each key was said once.
        assert {message["topic"]: message["payload"]["keys"] for message in await told(superuser)} == {
            worker.topic: ["task.a"],
            other.topic: ["job.a"],
        }
        await advance(superuser, LATER)
        async with transaction(superuser):
            for key in ("task.a", "task.a", "task.b", "task.a"):
                await insert(superuser, key, 4)
        # Called once, it is called already.
        assert [message["topic"] for message in await told(superuser)] == [worker.topic]


async def test_k15_a_dead_sleeper_does_not_swallow_the_wake_up(
    crowd: list[Worker], hearing: Ears, db: Any
) -> None:
    for worker in crowd:
        await worker.fall_asleep()
    *dead, alive = crowd
    await db.execute(
        "update runtime.workers set seen_at = seen_at - interval '1 hour' where id = any ($1)",
        [worker.id for worker in dead],
    )
    await insert(db, "task.a", 1)
    assert await hearing.heard() == [alive.channel]
    await switch_off(
        db, "runtime.wake_sleepers",
        "and (w.seen_at > called.fresh_since) is not false order by c.standing, random()",
        "order by w.seen_at",
    )  # fmt: skip
    await insert(db, "task.a", 2)
    assert alive.channel not in await hearing.heard()


@pytest.mark.parametrize("is_on", [True, False], ids=["", "without it"])
async def test_l12_who_left_a_call_unanswered_is_called_last(
    crowd: list[Worker], hearing: Ears, db: Any, is_on: bool
) -> None:
    if not is_on:
        await switch_off(
            db, "runtime.wake_sleepers", "order by c.standing, random()", "order by w.started_at"
        )
    *dead, alive = crowd
    for worker in crowd:
        await worker.fall_asleep()
    waited = 0
    for n in range(8):
        await insert(db, "task.a", n)
        if alive.channel in await hearing.heard():
            # It answers, takes what there is, and sleeps again; the others were killed in their sleep.
            await alive.finish(*await alive.take())
            await alive.fall_asleep()
        else:
            waited += 1
        await advance(db, LATER)
    # After two inserts at most every dead one has been found out.
    assert waited <= len(dead) // 2 if is_on else waited == 8


async def test_l9_a_call_from_before_the_clock_was_set_back_is_none(
    crowd: list[Worker], hearing: Ears, db: Any
) -> None:
    await crowd[0].fall_asleep()
    await insert(db, "task.a", 1)
    assert await hearing.heard() == [crowd[0].channel]
    await advance(db, -3600)
    # Anybody's heartbeat tells.
    await crowd[1].exchange(beat=True)
    await insert(db, "task.a", 2)
    assert await hearing.heard() == [crowd[0].channel]


async def test_k15_whatever_makes_work_is_announced(crowd: list[Worker], hearing: Ears, db: Any) -> None:
    sleeper, busy = crowd[:2]

    async def fall_asleep_again() -> None:
        await sleeper.fall_asleep()
        assert await hearing.heard() == []

    await fall_asleep_again()
    # Somebody must set the timer.
    await send(db, {"key": "task.a", "value": 1, "delay": 10})
    assert await hearing.heard() == [sleeper.channel]
    assert 5 < (await sleeper.exchange(want=1, due=True)).more["next_due"] <= 10
    await advance(db, 10)
    (message,) = await sleeper.take()
    await sleeper.fail(message, outcome="dead")

    await fall_asleep_again()
    await db.fetchval("select stream_redrive(subscription => 'a.task')")
    assert await hearing.heard() == [sleeper.channel]
    await sleeper.finish(*await sleeper.take())

    await fall_asleep_again()
    await db.fetchval("select stream_replay('a.task', dry_run => true)")
    assert await hearing.heard() == []
    await db.fetchval("select stream_replay('a.task')")
    assert await hearing.heard() == [sleeper.channel]
    await sleeper.finish(*await sleeper.take())

    await db.fetchval("select stream_pause('a.task')")
    await fall_asleep_again()
    await db.fetchval("select stream_resume('a.task')")
    assert await hearing.heard() == [sleeper.channel]

    await fall_asleep_again()
    await send(db, *[("task.a", n) for n in range(3)])
    assert await hearing.heard() == [sleeper.channel]
    await advance(db, LATER)
    # A take that came back full passes the word on: there may be more than one can carry.
    assert len((await busy.exchange(want=2)).taken) == 2
    assert await hearing.heard() == [sleeper.channel]
    assert len((await busy.exchange(want=2)).taken) == 1
    assert await hearing.heard() == []


@pytest.mark.parametrize("outcome", ["released", "failed", "later"])
async def test_g9_k15_what_a_worker_gives_back_and_cannot_take_again_wakes_another(
    crowd: list[Worker], hearing: Ears, db: Any, outcome: str
) -> None:
    leaving, sleeper = crowd[:2]
    await send(db, ("task.a", 1), ("task.a", 2))
    first, second = await leaving.take()
    await sleeper.fall_asleep()
    # While it has room it looks again itself.
    await leaving.exchange(failed=[first.report(outcome=outcome, delay=60)], want={"a.task": 0, "b.job": 5})
    assert await hearing.heard() == [sleeper.channel]
    assert len(await sleeper.take()) == (outcome == "released")
    await sleeper.fall_asleep()
    # One that has room looks again by itself.
    await leaving.exchange(failed=[second.report(outcome=outcome, delay=60)], want={"a.task": 5})
    assert await hearing.heard() == []


async def test_k15_a_huge_transaction_is_told_to_every_sleeper_once(
    crowd: list[Worker], hearing: Ears, connect: Connect
) -> None:
    *sleepers, _awake = crowd
    for worker in sleepers:
        await worker.fall_asleep()
    async with connect() as writer, transaction(writer):
        for wave in range(3):
            await send(writer, *[(f"task.{wave}-{n}-{'x' * 80}", n) for n in range(100)])
    assert sorted(await hearing.heard()) == sorted(worker.channel for worker in sleepers)


async def test_k15_over_realtime_each_on_its_own_private_topic_keys_only(
    worker: Worker, connect_as_superuser: Connect
) -> None:
    await worker.subscribe("a.task=>", announce=["realtime"])
    long = ".".join("x" * 31 for _ in range(8))
    assert len(long) == 255
    async with connect_as_superuser() as superuser:
        await worker.fall_asleep()
        keys = [f"{n}{long[1:]}" for n in range(8)]
        await send(superuser, *[(key, {"secret": "hush"}) for key in keys])
        (message,) = await told(superuser)
        assert (message["topic"], message["private"]) == (worker.topic, True)
        assert (message["event"], message["extension"]) == ("wake", "broadcast")
        assert set(message["payload"]) <= {"keys", "id"}
        assert set(message["payload"]["keys"]) <= set(keys)
        assert len(json.dumps(message["payload"])) < 1000


async def test_k15_a_missing_realtime_never_fails_a_writer(
    db: Any, worker: Worker, connect_as_superuser: Connect
) -> None:
    await worker.subscribe("a.task=>", announce=["realtime"])
    async with connect_as_superuser() as superuser:
        for loss in (
            "delete from realtime.messages; "
            "do $$ declare part regclass; begin for part in select inhrelid::regclass from pg_inherits "
            "where inhparent = 'realtime.messages'::regclass loop execute 'drop table ' || part; end loop; end $$",
            "drop function realtime.send(jsonb, text, text, boolean)",
            "drop schema realtime cascade",
        ):
            await worker.fall_asleep()
            await superuser.execute(loss)
            message = await insert(db, "task.a", 1)
            (taken,) = await worker.take()
            assert taken.id == message
            await worker.finish(taken)


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_k15_stricter_isolation_calls_everybody(
    db: Any, worker: Worker, connect: Connect, connect_as_superuser: Connect, isolation: str
) -> None:
    await worker.subscribe("a.task=task.>", announce=["realtime", "notify"])
    hearing = await ears(db, worker)
    await hearing.listen(EVERYBODY)
    async with connect() as writer, connect() as connection, connect_as_superuser() as superuser:
        newcomer = Worker(connection)
        async with writer.transaction(isolation=isolation):
            # To this snapshot the worker is awake and the newcomer unknown.
            await writer.fetchval("select 1")
            await worker.fall_asleep()
            await newcomer.subscribe("a.task=task.>", announce=["notify"])
            await newcomer.fall_asleep()
            await insert(writer, "task.a", 1)
            await insert(writer, "task.a", 2)
        assert await hearing.heard() == [EVERYBODY]
        assert [message["topic"] for message in await told(superuser)] == [worker.topic]


async def test_k15_an_old_snapshot_shows_old_heartbeats(
    worker: Worker, connect: Connect, connect_as_superuser: Connect
) -> None:
    await worker.subscribe("a.task=task.>", announce=["realtime"])
    async with connect() as writer, connect_as_superuser() as superuser:
        # As if the snapshot were taken an hour ago.
        await superuser.execute("update runtime.workers set seen_at = seen_at - interval '1 hour'")
        async with writer.transaction(isolation="repeatable_read"):
            await writer.fetchval("select 1")
            await worker.exchange(beat=True, want=1)
            await worker.fall_asleep()
            await insert(writer, "task.a", 1)
        assert [message["topic"] for message in await told(superuser)] == [worker.topic]


async def test_k15_asked_through_an_old_snapshot_nobody_sleeps(
    db: Any, crowd: list[Worker], hearing: Ears, connect: Connect
) -> None:
    await hearing.listen(EVERYBODY)
    await switch_off(db, "runtime.is_stricter", "<> 'read committed'", "is null")
    async with connect() as writer, writer.transaction(isolation="repeatable_read"):
        await writer.fetchval("select 1")
        await crowd[0].fall_asleep()
        await insert(writer, "task.a", 1)
    assert await hearing.heard() == []
