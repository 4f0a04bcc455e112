"""K9: the sweep lets a key go on that stands still, and touches none that does not."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, insert, send
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

ORDERED = {"name": "a.one", "patterns": ["task.>"], "ordered": True}
PARKED = (
    "select array_agg(message_id order by message_id) from runtime.deliveries "
    "where visible_at = 'infinity' and lease is null"
)


@pytest.fixture
async def ordered(worker: Worker) -> Worker:
    """A worker with one ordered subscription, behind one of the same worker that is not ordered."""
    await worker.subscribe("a.all=task.>", ORDERED)
    return worker


@pytest.fixture
async def other(ordered: Worker, connect: Connect) -> AsyncIterator[Worker]:
    """A second worker for the same subscription."""
    async with connect() as connection:
        yield Worker(connection, numbers=ordered.numbers)


async def park(db: Any, ids: list[int]) -> None:
    """As if somebody had parked them, and whatever should let them go had been lost."""
    await db.execute(
        "update runtime.deliveries set visible_at = 'infinity' where message_id = any ($1) and ordered_key is not null",
        ids,
    )


BEYOND = {
    "nothing": None,
    "a fresh one": "visible_at = null",
    "a delayed one": "visible_at = clock_timestamp() + interval '1 hour'",
    "one to be tried again": "attempts = 1, visible_at = clock_timestamp()",
    "a dead letter that blocks": "lease = runtime.dead_lease(), visible_at = 'infinity'",
}


@pytest.mark.parametrize("beyond", BEYOND)
async def test_o1_k9_a_sweep_heals_a_key_whose_head_is_parked(db: Any, ordered: Worker, beyond: str) -> None:
    first, second, last = await send(db, *[("task.a", n) for n in range(3)])
    await park(db, [first, second, last])
    if change := BEYOND[beyond]:
        await db.execute(
            f"update runtime.deliveries set {change} where message_id = $1 and ordered_key is not null", last
        )
    assert (await ordered.exchange(want={"a.one": 9}, due=True)).ids == []
    looked = await ordered.exchange(want={"a.one": 9}, due=True, beat=True)
    assert looked.ids == [first]
    await ordered.finish(*looked.taken)
    assert (await ordered.exchange(want={"a.one": 9}, due=True)).ids == [second]


async def test_o1_k9_without_the_sweep_it_stands_still(db: Any, ordered: Worker) -> None:
    await switch_off(db, "runtime.beat", "perform runtime.heal_order(me);")
    await park(db, await send(db, ("task.a", 1)))
    assert (await ordered.exchange(want={"a.one": 9}, due=True, beat=True)).ids == []


AHEAD = {
    "fresh": "visible_at = null",
    "delayed": "visible_at = clock_timestamp() + interval '1 hour'",
    "leased": "lease = gen_random_uuid(), visible_at = clock_timestamp() + interval '1 hour'",
    "abandoned": "lease = gen_random_uuid(), visible_at = clock_timestamp() - interval '1 hour'",
    "a dead letter that blocks": "lease = runtime.dead_lease(), visible_at = 'infinity'",
}


@pytest.mark.parametrize("ahead", AHEAD)
async def test_o1_k9_a_sweep_leaves_alone_what_somebody_will_let_go(
    db: Any, ordered: Worker, ahead: str
) -> None:
    first, second, third = await send(db, *[("task.a", n) for n in range(3)])
    await park(db, [second, third])
    await db.execute(
        f"update runtime.deliveries set {AHEAD[ahead]} where message_id = $1 and ordered_key is not null",
        first,
    )
    await ordered.exchange(beat=True)
    assert await db.fetchval(PARKED) == [second, third]


async def test_o1_k9_a_sweep_leaves_alone_what_waits_for_a_higher_one_that_runs(
    db: Any, ordered: Worker
) -> None:
    first, second = await send(db, ("task.a", 1), ("task.a", 2))
    await park(db, [first])
    await db.execute(
        f"update runtime.deliveries set {AHEAD['leased']} where message_id = $1 and ordered_key is not null",
        second,
    )
    await ordered.exchange(beat=True)
    assert await db.fetchval(PARKED) == [first]


async def test_o1_k9_of_many_keys_each_sweep_looks_at_some_and_the_next_goes_on(
    db: Any, ordered: Worker
) -> None:
    await send(db, *[(f"task.k{n}", n) for n in range(1500)])
    stuck = await insert(db, "task.last")
    await park(db, [stuck])
    await ordered.exchange(beat=True)
    assert await db.fetchval(PARKED) == [stuck]
    await ordered.exchange(beat=True)
    assert await db.fetchval(PARKED) is None
    # And from the beginning again.
    again = await insert(db, "task.first")
    await park(db, [again])
    await ordered.exchange(beat=True)
    assert await db.fetchval(PARKED) is None


async def test_o1_k9_whoever_sleeps_is_woken_for_what_was_healed(
    db: Any, ordered: Worker, other: Worker
) -> None:
    await other.subscribe("a.all=task.>", ORDERED, announce=["notify"])
    await other.fall_asleep()
    heard: list[object] = []
    await db.add_listener(other.channel, lambda *args: heard.append(args))
    # Put there by hand, so that no writer announces it.
    await db.execute(
        "insert into runtime.deliveries (message_id, subscription, visible_at, marks, sole, ordered_key) "
        "values ($1, $2, 'infinity', false, false, 'task.a')",
        await insert(db, "nobody.wants"), ordered.numbers["a.one"],
    )  # fmt: skip
    await ordered.exchange(beat=True)
    await db.fetchval("select 1")
    assert len(heard) == 1
    assert len(await other.take()) == 1
