"""K9 as a lock per key: nothing of a key is taken while another of it is leased, however it came."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Taken, Worker, advance, insert, send
from tests.kernel.mutations import MUTATIONS
from tests.kernel.schedule import started, transaction, until_waiting
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

ORDERED = {"name": "a.one", "patterns": ["task.>"], "ordered": True}


@pytest.fixture
async def ordered(worker: Worker) -> Worker:
    """A worker with one ordered subscription."""
    await worker.subscribe(ORDERED)
    return worker


@pytest.fixture
async def other(ordered: Worker, connect: Connect) -> AsyncIterator[Worker]:
    """A second worker for the same subscription."""
    async with connect() as connection:
        yield Worker(connection, numbers=ordered.numbers)


async def parked(db: Any) -> list[int]:
    """The ids of the messages that stand behind another one."""
    found = await db.fetch(
        "select message_id from runtime.deliveries where visible_at = 'infinity' and lease is null order by 1"
    )
    return [row["message_id"] for row in found]


async def _late(db: Any, ordered: Worker, other: Worker) -> tuple[int, Taken]:
    async with transaction(other.connection):
        lower = await insert(other.connection, "task.a", "lower")
        await insert(db, "task.a", "higher")
        (running,) = await ordered.take()
    return lower, running


async def _redriven(db: Any, ordered: Worker, _other: Worker) -> tuple[int, Taken]:
    await send(db, ("task.a", "lower"), ("task.a", "higher"))
    (lower,) = await ordered.take()
    await ordered.fail(lower, outcome="dead")
    (running,) = await ordered.take()
    await db.fetchval("select stream_redrive()")
    return lower.id, running


async def _replayed(db: Any, ordered: Worker, _other: Worker) -> tuple[int, Taken]:
    await send(db, ("task.a", "lower"), ("task.a", "higher"))
    (lower,) = await ordered.take()
    await ordered.finish(lower)
    (running,) = await ordered.take()
    await db.fetchval("select stream_replay('a.one', ids => $1)", [lower.id])
    return lower.id, running


async def _due(db: Any, ordered: Worker, other: Worker) -> tuple[int, Taken]:
    lower, running = await _late(db, ordered, other)
    await db.execute(
        "update runtime.deliveries set attempts = 1, visible_at = clock_timestamp() where message_id = $1",
        lower,
    )
    return lower, running


async def _poison(db: Any, ordered: Worker, other: Worker) -> tuple[int, Taken]:
    lower, running = await _late(db, ordered, other)
    await db.execute(
        "update runtime.deliveries set crashes = 2, visible_at = clock_timestamp() where message_id = $1",
        lower,
    )
    return lower, running


Coming = Callable[[Any, Worker, Worker], Awaitable[tuple[int, Taken]]]
WAYS_TO_COME: dict[str, Coming] = {
    "late": _late,
    "redriven": _redriven,
    "replayed": _replayed,
    "due": _due,
    "poison": _poison,
}


async def _crash(db: Any, _ordered: Worker, _running: Taken) -> None:
    await advance(db, 30)


WAYS_TO_LEAVE: dict[str, Callable[[Any, Worker, Taken], Awaitable[Any]]] = {
    "done": lambda _db, worker, running: worker.finish(running),
    "dead": lambda _db, worker, running: worker.fail(running, outcome="dead"),
    "failed": lambda _db, worker, running: worker.fail(running, delay=0),
    "put off": lambda _db, worker, running: worker.fail(running, outcome="later", delay=30),
    "given back": lambda _db, worker, running: worker.fail(running, outcome="released"),
    "crashed": _crash,
}


async def found(worker: Worker) -> list[int]:
    """What a patient worker takes: by a sweep, and alone."""
    return [each.id for each in await worker.take() or await worker.take(alone=True)]


@pytest.mark.parametrize("coming", WAYS_TO_COME)
@pytest.mark.parametrize("leaving", WAYS_TO_LEAVE)
async def test_o3_k9_a_lower_one_waits_for_the_higher_one_that_runs_and_then_goes_first(
    db: Any, ordered: Worker, other: Worker, coming: str, leaving: str
) -> None:
    lower, running = await WAYS_TO_COME[coming](db, ordered, other)
    for worker in (other, ordered, other):
        assert await found(worker) == []
    assert await parked(db) == [lower]
    await WAYS_TO_LEAVE[leaving](db, ordered, running)
    assert await found(other) == [lower]
    # What was given back comes after it, and not beside it.
    assert await found(ordered) == []


@pytest.mark.parametrize("leaving", WAYS_TO_LEAVE)
async def test_o3_k9_the_same_where_a_dead_letter_holds_up_its_key(
    db: Any, worker: Worker, connect: Connect, leaving: str
) -> None:
    await worker.subscribe({**ORDERED, "dead_blocks": True, "max_crashes": 1})
    async with connect() as connection:
        other = Worker(connection, numbers=worker.numbers)
        lower, running = await _late(db, worker, other)
        assert await found(other) == []
        await WAYS_TO_LEAVE[leaving](db, worker, running)
        (late,) = await other.take()
        assert late.id == lower
        await other.finish(late)
    await db.fetchval("select stream_redrive()")
    await advance(db, 30)
    assert await found(worker) == ([] if leaving == "done" else [running.id])


WITHOUT = {
    "K9 unparks nothing": ("done", "dead"),
    "K9 a failed attempt unparks nothing below": ("failed", "put off", "given back"),
    "K9 a crash unparks nothing below": ("crashed",),
    "K9 a dead letter that blocks unparks nothing below": ("held up",),
}


@pytest.mark.parametrize(("rule", "leaving"), [(rule, each) for rule in WITHOUT for each in WITHOUT[rule]])
async def test_o3_k9_without_unparking_what_waits_for_a_higher_one_stands_still(
    db: Any, worker: Worker, connect: Connect, rule: str, leaving: str
) -> None:
    (mutation,) = [each for each in MUTATIONS if each.name == rule]
    await mutation.carry_out(db)
    await worker.subscribe({**ORDERED, "dead_blocks": leaving == "held up"})
    async with connect() as connection:
        other = Worker(connection, numbers=worker.numbers)
        lower, running = await _late(db, worker, other)
        assert await found(other) == []
        assert await parked(db) == [lower]
        await WAYS_TO_LEAVE["dead" if leaving == "held up" else leaving](db, worker, running)
        for each in (other, worker):
            assert await found(each) == []
        assert lower in await parked(db)


@pytest.mark.parametrize("comes_back", ["redriven", "replayed"])
async def test_o3_k9_what_comes_back_beside_a_take_that_has_not_committed_is_not_taken(
    db: Any, ordered: Worker, other: Worker, comes_back: str
) -> None:
    lower, higher = await send(db, ("task.a", "lower"), ("task.a", "higher"))
    (ended,) = await ordered.take()
    if comes_back == "redriven":
        await ordered.fail(ended, outcome="dead")
    else:
        await ordered.finish(ended)
    async with transaction(ordered.connection):
        assert [each.id for each in await ordered.take()] == [higher]
        if comes_back == "redriven":
            await db.fetchval("select stream_redrive()")
        else:
            await db.fetchval("select stream_replay('a.one', ids => $1)", [lower])
        looked = await other.exchange(want=10, due=True)
        assert looked.ids == []
        assert looked.more["look_again"]
    assert await other.take() == []
    assert await parked(db) == [lower]


async def test_o3_k9_two_exchanges_at_once_take_one_of_a_key(
    db: Any, ordered: Worker, other: Worker, connect: Connect
) -> None:
    async with connect() as late, transaction(late) as writing:
        lower = await insert(late, "task.a", "lower")
        higher = await insert(db, "task.a", "higher")
        async with transaction(ordered.connection):
            (running,) = await ordered.take()
            assert running.id == higher
            await writing.commit()
            looked = await other.exchange(want=10, due=True)
            # Not even parked: the lease that it waits for is not there for everybody yet.
            assert looked.ids == []
            assert looked.more["look_again"]
            assert await parked(db) == []
    assert await other.take() == []
    assert await parked(db) == [lower]
    await ordered.finish(running)
    assert [each.id for each in await other.take()] == [lower]


async def test_o3_k9_a_take_that_is_rolled_back_holds_up_nothing(
    db: Any, ordered: Worker, other: Worker, connect: Connect
) -> None:
    async with connect() as late, transaction(late) as writing:
        lower = await insert(late, "task.a", "lower")
        higher = await insert(db, "task.a", "higher")
        async with transaction(ordered.connection) as taking:
            assert [each.id for each in await ordered.take()] == [higher]
            await writing.commit()
            assert await other.take() == []
            await taking.rollback()
    assert [each.id for each in await other.take()] == [lower]


async def test_o3_k9_without_the_lock_of_the_key_two_of_it_run_at_once(
    db: Any, ordered: Worker, other: Worker, connect: Connect
) -> None:
    await switch_off(
        db, "runtime.take_ordered", "pg_try_advisory_xact_lock(hashtextextended(f.key, wanted))", "true"
    )
    async with connect() as late, transaction(late) as writing:
        lower = await insert(late, "task.a", "lower")
        await insert(db, "task.a", "higher")
        async with transaction(ordered.connection):
            assert len(await ordered.take()) == 1
            await writing.commit()
            assert [each.id for each in await other.take()] == [lower]


@pytest.mark.parametrize("looks_again", [True, False])
async def test_o3_k9_what_was_leased_between_the_judgement_and_the_lock_of_the_key_is_seen(
    db: Any, ordered: Worker, other: Worker, looks_again: bool
) -> None:
    lower, higher = await send(db, ("task.a", "lower"), ("task.a", "higher"))
    judged = "free := array("
    await switch_off(db, "runtime.take_ordered", judged, f"perform pg_advisory_xact_lock(42); {judged}")
    if not looks_again:
        await switch_off(db, "runtime.take_ordered", "r.ordered_key = d.ordered_key", "false")
    exchange = await db.fetchval("select 'public.stream_exchange'::regproc::oid::regprocedure::text")
    await db.execute(f"alter function {exchange} set lock_timeout = '60s'")
    async with transaction(db) as holding:
        await db.execute("select pg_advisory_xact_lock(42)")
        # As another exchange does for which the lower one was not there yet.
        async with transaction(ordered.connection) as leasing:
            await ordered.connection.execute(
                "select from runtime.deliveries where message_id = $1 for update", higher
            )
            async with started(lambda: other.exchange(want=10, due=True)) as taking:
                await until_waiting(ordered.connection, other.connection)
                await ordered.connection.execute(
                    "update runtime.deliveries set lease = gen_random_uuid(), "
                    "visible_at = clock_timestamp() + interval '1 hour' where message_id = $1",
                    higher,
                )
                await leasing.commit()
                await holding.rollback()
                looked = await taking.outcome()
    assert looked.ids == ([] if looks_again else [lower])
    assert bool(looked.more["look_again"]) == looks_again


async def test_o3_k9_without_looking_for_a_lease_two_run_at_once(
    db: Any, ordered: Worker, other: Worker
) -> None:
    # Both rules that look for a lease, in the judgement and under the lock.
    for rule in ("n.ordered_key = m.ordered_key", "r.ordered_key = d.ordered_key"):
        await switch_off(db, "runtime.take_ordered", rule, f"{rule} and {rule[0]}.lease is null")
    lower, _running = await _late(db, ordered, other)
    assert [each.id for each in await other.take()] == [lower]


async def test_o3_k9_nothing_is_parked_behind_a_higher_one_that_is_just_ending(
    db: Any, ordered: Worker, other: Worker
) -> None:
    lower, running = await _late(db, ordered, other)
    async with transaction(ordered.connection):
        await ordered.finish(running)
        looked = await other.exchange(want=10, due=True)
        assert looked.ids == []
        assert looked.more["look_again"]
        assert await parked(db) == []
    assert [each.id for each in await other.take()] == [lower]


async def test_o3_k9_many_keys_at_once_lock_no_more_than_the_server_has_room_for(
    db: Any, ordered: Worker
) -> None:
    ids = await send(db, *[(f"task.k{n}", n) for n in range(450)])
    taken: list[int] = []
    async with transaction(ordered.connection):
        looked = await ordered.exchange(want=450, due=True)
        locks = await db.fetchval("select count(*) from pg_locks where locktype = 'advisory'")
        assert locks == len(looked.ids) == 200
        taken += looked.ids
    while looked.more["full"]:
        looked = await ordered.exchange(want=450)
        taken += looked.ids
    assert taken == ids
