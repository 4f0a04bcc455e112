"""K9: do the messages of one key end in their order, across workers, retries and crashes, at the price of a look?"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Taken, Worker, advance, insert, send
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
    return list(
        await db.fetchval(
            "select coalesce(array_agg(message_id order by message_id), '{}') "
            "from runtime.deliveries where visible_at = 'infinity'"
        )
    )


async def test_g8_k9_one_of_a_key_at_a_time_across_workers(db: Any, ordered: Worker, other: Worker) -> None:
    first, second, elsewhere, third = await send(
        db, ("task.a", 1), ("task.a", 2), ("task.b", 3), {"key": "task.a", "value": 4, "priority": 1}
    )
    (head, beside) = await ordered.take()
    assert [head.id, beside.id] == [first, elsewhere]
    assert await parked(db) == [second, third]
    assert await other.take() == []
    await ordered.finish(head)
    (following,) = await other.take()
    assert following.id == second
    assert await ordered.take() == []
    await other.finish(following)
    # Its priority was no reason to go first.
    assert [each.id for each in await ordered.take()] == [third]


async def test_k9_without_looking_for_the_head_two_of_a_key_run_at_once(
    db: Any, ordered: Worker, other: Worker
) -> None:
    for rule in ("n.ordered_key = m.ordered_key", "r.ordered_key = d.ordered_key"):
        await switch_off(db, "runtime.take_ordered", rule, f"{rule} and {rule[0]}.lease is null")
    for worker in (ordered, other):
        (sent,) = await send(db, ("task.a", 1))
        assert [each.id for each in await worker.take()] == [sent]


async def test_g8_k9_a_retrying_head_blocks_its_key(db: Any, ordered: Worker, other: Worker) -> None:
    first, second = await send(db, ("task.a", 1), ("task.a", 2))
    for delay in (30, 30):
        (head,) = await ordered.take()
        assert head.id == first
        await ordered.fail(head, delay=delay)
        (late,) = await send(db, ("task.a", "late"))
        assert await other.take() == []
        assert late in await parked(db)
        await advance(db, delay)
    (head,) = await other.take()
    assert (head.id, head.attempts) == (first, 2)
    await other.finish(head)
    assert [each.id for each in await ordered.take()] == [second]


async def test_g8_k9_a_delayed_head_blocks_its_key(db: Any, ordered: Worker) -> None:
    delayed, second, elsewhere = await send(
        db, {"key": "task.a", "value": 1, "delay": 10}, ("task.a", 2), ("task.b", 3)
    )
    looked = await ordered.exchange(want=10, due=True)
    assert looked.ids == [elsewhere]
    assert 5 < looked.more["next_due"] <= 10
    await advance(db, 10)
    (head,) = await ordered.take()
    assert head.id == delayed
    await ordered.finish(head)
    assert [each.id for each in await ordered.take()] == [second]


async def test_g8_k9_the_due_path_looks_for_a_head_too(db: Any, ordered: Worker, other: Worker) -> None:
    # A lower one commits late and is taken, while the higher one waits to be tried again.
    async with transaction(other.connection) as writing:
        lower = await insert(other.connection, "task.a", "lower")
        higher = await insert(db, "task.a", "higher")
        (head,) = await ordered.take()
        assert head.id == higher
        await ordered.fail(head, delay=0)
        await writing.commit()
    (late,) = await ordered.take()
    assert late.id == lower
    assert await parked(db) == [higher]
    await ordered.finish(late)
    (again,) = await ordered.take()
    assert (again.id, again.attempts) == (higher, 1)


async def test_g8_k9_a_lower_one_that_commits_late_lets_nothing_pass(
    db: Any, ordered: Worker, other: Worker
) -> None:
    async with transaction(other.connection) as writing:
        lower = await insert(other.connection, "task.a", "lower")
        higher = await insert(db, "task.a", "higher")
        (running,) = await ordered.take()
        await writing.commit()
    (last,) = await send(db, ("task.a", "last"))
    # It waits for the end of the higher one, which runs already, and the last one waits for both.
    assert await other.take() == []
    assert await parked(db) == [lower, last]
    await ordered.finish(running)
    (late,) = await other.take()
    assert [running.id, late.id] == [higher, lower]
    assert await ordered.take() == []
    await other.finish(late)
    assert [each.id for each in await other.take()] == [last]


async def test_g8_k9_the_crash_of_the_head_passes_the_turn_to_nobody(
    db: Any, ordered: Worker, other: Worker
) -> None:
    first, second = await send(db, ("task.a", 1), ("task.a", 2))
    for crashes in range(2):
        (head,) = await ordered.take()
        assert (head.id, head.crashes) == (first, crashes)
        assert await other.take() == []
        await advance(db, 30)
    # Twice crashed it is taken alone; until then it blocks its key like any head.
    assert await other.take() == []
    (head,) = await other.take(alone=True)
    assert (head.id, head.crashes) == (first, 2)
    assert await ordered.take() == []
    await other.finish(head)
    assert [each.id for each in await ordered.take()] == [second]


async def finishing(worker: Worker, connection: Any, head: Taken, look: Callable[[], Any]) -> Any:
    """What another worker sees while the transaction that ends the head is still open."""
    async with transaction(connection):
        await worker.finish(head)
        return await look()


async def test_g8_k9_nothing_is_parked_behind_an_ending_head(db: Any, ordered: Worker, other: Worker) -> None:
    first, second = await send(db, ("task.a", 1), ("task.a", 2))
    (head,) = await ordered.take()
    assert head.id == first
    await db.execute("update runtime.deliveries set visible_at = null where message_id = $1", second)
    looked = await finishing(ordered, ordered.connection, head, lambda: other.exchange(want=10, due=True))
    assert looked.ids == []
    assert looked.more["look_again"]
    assert await parked(db) == []
    assert [each.id for each in await other.take()] == [second]


async def test_k9_parked_behind_an_unlocked_head_it_is_lost(db: Any, ordered: Worker, other: Worker) -> None:
    await switch_off(db, "runtime.take_ordered", "for key share skip locked")
    _first, second = await send(db, ("task.a", 1), ("task.a", 2))
    (head,) = await ordered.take()
    await db.execute("update runtime.deliveries set visible_at = null where message_id = $1", second)
    await finishing(ordered, ordered.connection, head, lambda: other.exchange(want=10, due=True))
    assert await parked(db) == [second]
    assert await other.take() == []


async def test_g8_k9_a_head_ends_only_after_those_who_park_behind_it(
    db: Any, ordered: Worker, other: Worker
) -> None:
    (first,) = await send(db, ("task.a", 1))
    (head,) = await ordered.take()
    second, third = await send(db, ("task.a", 2), ("task.a", 3))
    async with transaction(other.connection) as parking:
        assert await other.take() == []
        async with started(lambda: ordered.finish(head)) as ending:
            await until_waiting(db, ordered.connection)
            await parking.commit()
            assert (await ending.outcome()).refused == set()
    assert head.id == first
    assert await parked(db) == [third]
    assert [each.id for each in await other.take()] == [second]


async def _expire(db: Any, worker: Worker, head: Taken) -> None:
    await db.execute("update consciousness_stream set expires_at = clock_timestamp() where id = $1", head.id)
    await worker.fail(head, outcome="released")


async def _lose_the_message(db: Any, worker: Worker, head: Taken) -> None:
    await db.execute("delete from consciousness_stream where id = $1", head.id)
    await worker.fail(head, outcome="released")


async def _prune(db: Any, worker: Worker, head: Taken) -> None:
    await worker.fail(head, outcome="released")
    answer = await db.fetchval("select stream_prune(0, 1)")
    assert (answer["expired"], answer["last"]) == (1, head.id)


WAYS_TO_END: dict[str, Callable[[Any, Worker, Taken], Any]] = {
    "done": lambda _db, worker, head: worker.finish(head),
    "dead": lambda _db, worker, head: worker.fail(head, outcome="dead"),
    "out of attempts": lambda _db, worker, head: worker.fail(head),
    "out of crashes": lambda db, _worker, _head: advance(db, 30),
    "expired": _expire,
    "dropped": _lose_the_message,
    "pruned": _prune,
}


@pytest.mark.parametrize("way", WAYS_TO_END)
async def test_g8_k9_every_end_lets_the_next_one_go(db: Any, worker: Worker, way: str) -> None:
    await worker.subscribe({**ORDERED, "max_attempts": 1, "max_crashes": 1})
    first, second, third = await send(db, *[("task.a", n) for n in range(3)])
    (head,) = await worker.take()
    assert (head.id, await parked(db)) == (first, [second, third])
    await WAYS_TO_END[way](db, worker, head)
    looked = await worker.exchange(want=10, due=True)
    if not looked.taken:
        # The end came with this look: it says that there is more to look for.
        assert looked.more["look_again"]
        looked = await worker.exchange(want=10, due=True)
    assert looked.ids == [second]
    assert await parked(db) == [third]


async def test_k9_without_unparking_the_next_one_waits_for_ever(db: Any, ordered: Worker) -> None:
    await switch_off(
        db, "runtime.finish", "perform runtime.unpark(ended.ordered, ended.ordered_keys)", "null"
    )
    await send(db, ("task.a", 1), ("task.a", 2))
    (head,) = await ordered.take()
    await ordered.finish(head)
    assert await ordered.take() == []


async def two_running(db: Any, ordered: Worker, other: Worker) -> tuple[Taken, Taken, list[int]]:
    """Two leased deliveries of one key, as older kernels and frozen workers left them, and three parked behind them."""
    ids = await send(db, *[("task.a", n) for n in range(5)])
    (first,) = await ordered.take()
    lease = await db.fetchval(
        "update runtime.deliveries set lease = gen_random_uuid(), visible_at = clock_timestamp() + interval '30 s' "
        "where message_id = $1 returning lease", ids[1],
    )  # fmt: skip
    assert await parked(db) == ids[2:]
    return first, first._replace(id=ids[1], lease=str(lease)), ids


async def drained(worker: Worker) -> list[int]:
    """Take and finish until nothing more is to be had; returns the ids in the order they ended."""
    ended: list[int] = []
    while taken := await worker.take():
        ended += [each.id for each in taken]
        await worker.finish(*taken)
    return ended


@pytest.mark.parametrize("last_first", [False, True])
async def test_o1_k9_two_ends_of_one_key_leave_nothing_parked(
    db: Any, ordered: Worker, other: Worker, last_first: bool
) -> None:
    first, second, ids = await two_running(db, ordered, other)
    async with transaction(ordered.connection) as ending, transaction(other.connection) as too:
        await ordered.finish(first)
        await other.finish(second)
        for each in (too, ending) if last_first else (ending, too):
            await each.commit()
    assert await drained(ordered) == ids[2:]
    assert await parked(db) == []


async def test_g6_k9_a_hot_key_in_front_holds_up_no_other_key(db: Any, ordered: Worker) -> None:
    await send(db, *[("task.hot", n) for n in range(100)])
    others = await send(db, *[(f"task.cold{n}", n) for n in range(3)])
    taken: list[int] = []
    looks = 0
    looked = await ordered.exchange(want=5, due=True)
    while looked.taken or looked.more["full"]:
        looks += 1
        taken += looked.ids
        if not looked.more["full"]:
            break
        looked = await ordered.exchange(want=5)
    assert taken[1:] == others
    # Each look passes over four times what it wants, and none is made in vain.
    assert looks <= 7
    assert len(await parked(db)) == 99


async def test_k9_ending_with_no_room_for_the_next_one_wakes_a_sleeper(
    db: Any, ordered: Worker, other: Worker
) -> None:
    _first, second = await send(db, ("task.a", 1), ("task.a", 2))
    (head,) = await ordered.take()
    await other.subscribe(ORDERED, announce=["notify"])
    heard: list[object] = []
    await db.add_listener(other.channel, lambda *args: heard.append(args))
    await other.fall_asleep()
    await ordered.finish(head)
    await db.fetchval("select 1")
    assert len(heard) == 1
    assert [each.id for each in await other.take()] == [second]


async def test_g8_k9_an_unordered_subscription_becomes_ordered(
    db: Any, worker: Worker, other: Worker
) -> None:
    del other
    await worker.subscribe("b.two=job.>")
    first, second, urgent = await send(
        db, ("job.a", 1), ("job.a", 2), {"key": "job.b", "value": 3, "priority": 1}
    )
    later = Worker(worker.connection)
    await later.subscribe({"name": "b.two", "patterns": ["job.>"], "ordered": True})
    head, beside = await later.take()
    assert [head.id, beside.id] == [first, urgent]
    await later.finish(head)
    assert [each.id for each in await later.take()] == [second]


async def test_g8_k9_a_lower_id_is_an_earlier_insert(db: Any) -> None:
    cache = await db.fetchval(
        "select cache_size from pg_sequences "
        "where format('%I.%I', schemaname, sequencename) = "
        "pg_get_serial_sequence('public.consciousness_stream', 'id')"
    )
    assert cache == 1
