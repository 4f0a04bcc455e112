"""Limits across all workers: so many a second, so many at a time, by the database's word; nobody else pays for them."""

from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, advance, insert, send
from tests.kernel.schedule import transaction
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

TOTAL = {"name": "a.one", "patterns": ["task.output"], "concurrency_total": 3}
# One and a tenth of a second's worth: at most two at once.
RATE = {"name": "a.one", "patterns": ["task.output"], "rate_amount": 10, "rate_seconds": 1}


async def refill(db: Any, seconds: float) -> None:
    """Let so much time pass for what is left of the rates."""
    await db.execute("update runtime.limits set filled_at = filled_at - make_interval(secs => $1)", seconds)


async def stop_the_clock(db: Any, *functions: str) -> None:
    """Have time pass for the rates only where a test says so."""
    for function in ("runtime.allow", "runtime.spend"):
        definition = await db.fetchval("select pg_get_functiondef($1::regproc)", function)
        await db.execute(definition.replace("clock_timestamp()", "'2026-11-01 12:00:00+00'::timestamptz"))
    await db.execute("update runtime.limits set filled_at = '2026-11-01 12:00:00+00'")


async def write(db: Any, count: int) -> list[int]:
    return await send(db, *[("task.output", n) for n in range(count)])


@pytest.fixture
async def other(connect: Connect, worker: Worker) -> Any:
    """A second worker."""
    async with connect() as connection:
        yield Worker(connection)


# Concurrency across all workers


async def test_so_many_are_in_hand_in_all_workers_together(db: Any, worker: Worker, other: Worker) -> None:
    await worker.subscribe(TOTAL, "a.free=task.output")
    await other.subscribe(TOTAL, "a.free=task.output")
    await write(db, 5)
    assert len(await worker.take(2)) == 4
    answer = await other.exchange(want={"a.one": 5}, due=True)
    assert len(answer.taken) == 1
    # More waits, but not for now: no reason to look again at once, nor to wake anybody.
    assert answer.more["full"] == []
    assert 0 < answer.more["limited"] <= 30
    assert len((await other.exchange(want={"a.free": 9}, due=True)).taken) == 3
    assert (await other.exchange(want={"a.one": 5}, due=True)).taken == []


async def test_what_a_dead_worker_holds_counts_until_its_lease_ends(
    db: Any, worker: Worker, other: Worker
) -> None:
    await worker.subscribe(TOTAL)
    await other.subscribe(TOTAL)
    await write(db, 5)
    assert len(await worker.take()) == 3
    assert await other.take() == []
    await advance(db, 31)
    assert len(await other.take()) == 3


async def test_an_end_lets_the_next_be_taken_in_the_same_exchange(db: Any, worker: Worker) -> None:
    await worker.subscribe(TOTAL)
    await write(db, 9)
    taken = await worker.take()
    answer = await worker.exchange(done=[each.report() for each in taken[:2]], want=5)
    assert len(answer.taken) == 2
    answer = await worker.exchange(
        failed=[each.report(outcome="failed", delay=60) for each in answer.taken], want=5
    )
    assert len(answer.taken) == 2


@pytest.mark.parametrize("outcome", ["done", "failed", "released", "dead"])
async def test_k15_a_slot_given_free_by_one_that_wants_no_more_wakes_another(
    db: Any, connect: Connect, worker: Worker, other: Worker, outcome: str
) -> None:
    await worker.subscribe(TOTAL)
    await other.subscribe(TOTAL, announce=["notify"])
    await write(db, 5)
    taken = await worker.take()
    await other.fall_asleep()
    heard: list[str] = []
    async with connect() as ear:
        await ear.add_listener(other.channel, lambda *given: heard.append(given[-1]))
        report = taken[0].report(outcome=outcome)
        await worker.exchange(**{"done" if outcome == "done" else "failed": [report]})
        await ear.fetchval("select 1")
    assert heard
    assert set(heard) == {"wake"}
    assert len(await other.take()) == 1


async def test_k15_nobody_is_woken_for_a_slot_that_nothing_waits_for(
    db: Any, connect: Connect, worker: Worker, other: Worker
) -> None:
    await worker.subscribe(TOTAL)
    await other.subscribe(TOTAL, announce=["notify"])
    await write(db, 2)
    taken = await worker.take()
    await other.fall_asleep()
    heard: list[str] = []
    async with connect() as ear:
        await ear.add_listener(other.channel, lambda *given: heard.append(given[-1]))
        await worker.finish(*taken)
        await ear.fetchval("select 1")
    assert heard == []


async def in_turn(worker: Worker, other: Worker) -> tuple[int, int, float]:
    """How many each takes when the second looks before the first has committed, and when that looks again."""
    async with transaction(worker.connection):
        first = await worker.take()
        answer = await other.exchange(want=5, due=True)
    return len(first), len(answer.taken), answer.more.get("limited", 0.0)


async def test_two_that_look_at_once_do_not_both_take_what_is_left(
    db: Any, worker: Worker, other: Worker
) -> None:
    await worker.subscribe(TOTAL)
    await other.subscribe(TOTAL)
    await write(db, 9)
    first, second, seconds = await in_turn(worker, other)
    assert (first, second) == (3, 0)
    # A moment, and not the seconds until a window of time is over.
    assert 0 < seconds < 0.1


async def test_without_the_lock_they_would(db: Any, worker: Worker, other: Worker) -> None:
    await worker.subscribe(TOTAL)
    await other.subscribe(TOTAL)
    await write(db, 9)
    await switch_off(
        db,
        "runtime.allow",
        "if not pg_try_advisory_xact_lock(hashtext('runtime.limits'), one.subscription) then",
        "if false then",
    )
    first, second, _ = await in_turn(worker, other)
    assert first + second == 6


async def test_k9_an_ordered_subscription_keeps_its_order_and_its_limit(db: Any, worker: Worker) -> None:
    await worker.subscribe({**TOTAL, "patterns": ["lane.*"], "ordered": True, "concurrency_total": 2})
    ids = await send(db, *[(f"lane.{n % 3}", n) for n in range(9)])
    order: list[int] = []
    while taken := await worker.take():
        assert len(taken) <= 2
        order += [each.id for each in taken]
        await worker.finish(*taken)
    assert sorted(order) == ids
    for lane in range(3):
        mine = ids[lane::3]
        assert [each for each in order if each in mine] == mine


async def test_k8_a_poison_message_is_taken_alone_within_the_limit(db: Any, worker: Worker) -> None:
    await worker.subscribe({**TOTAL, "concurrency_total": 1})
    [first] = await write(db, 1)
    for _ in range(2):
        assert [each.id for each in await worker.take()] == [first]
        await advance(db, 31)
    [second] = await write(db, 1)
    assert [each.id for each in await worker.take()] == [second]
    assert await worker.take(alone=True) == []
    await worker.exchange()


# A rate


async def test_a_rate_lets_few_at_once_and_then_each_in_its_time(
    db: Any, worker: Worker, other: Worker
) -> None:
    await worker.subscribe(RATE)
    await other.subscribe(RATE)
    await stop_the_clock(db)
    await write(db, 100)
    answer = await worker.exchange(want=50, due=True)
    assert len(answer.taken) == 2
    assert answer.more["full"] == []
    assert answer.more["limited"] == pytest.approx(0.1)
    for worker_in_turn in (worker, other) * 5:
        assert (await worker_in_turn.exchange(want=50)).taken == []
        await refill(db, 0.1001)
        answer = await worker_in_turn.exchange(want=50)
        assert len(answer.taken) == 1
        assert 0 < answer.more["limited"] <= 0.1
    # However long nobody came, no crowd is let through.
    await refill(db, 3600)
    assert len((await other.exchange(want=50)).taken) == 2


async def test_a_fast_rate_is_looked_at_in_handfuls(db: Any, worker: Worker) -> None:
    await worker.subscribe({**RATE, "rate_amount": 1000})
    await stop_the_clock(db)
    await write(db, 500)
    assert len(await worker.take(500)) == 101
    answer = await worker.exchange(want=500)
    assert answer.taken == []
    assert answer.more["limited"] == pytest.approx(0.05)


async def test_a_rate_that_nothing_waits_for_sets_no_timer(db: Any, worker: Worker) -> None:
    await worker.subscribe(RATE)
    await write(db, 2)
    assert len(await worker.take()) == 2
    assert "limited" not in (await worker.exchange(want=50, due=True)).more
    await worker.fall_asleep(want=50)


async def test_a_restart_gives_no_fresh_start_and_another_rate_holds_at_once(
    db: Any, worker: Worker, other: Worker
) -> None:
    await worker.subscribe(RATE)
    await stop_the_clock(db)
    await write(db, 100)
    assert len(await worker.take(50)) == 2
    await other.subscribe(RATE)
    assert await other.take(50) == []

    async def third() -> Worker:
        return Worker(db)

    later = await third()
    await later.subscribe({**RATE, "rate_amount": 100})
    await refill(db, 0.0501)
    assert len(await later.take(50)) == 5
    # Declared without limits, it has none.
    last = await third()
    await last.subscribe("a.one=task.output")
    assert len(await last.take(50)) == 50
    assert await db.fetchval("select count(*) from runtime.limits") == 0


async def test_k14_an_older_worker_does_not_bring_its_limits_back(
    db: Any, worker: Worker, other: Worker
) -> None:
    await worker.subscribe(TOTAL)
    await other.subscribe({**TOTAL, "concurrency_total": 1})
    await worker.subscribe(TOTAL)
    await write(db, 5)
    assert len(await worker.take()) == 1


async def test_k2_an_answer_that_was_lost_is_paid_for_once(db: Any, worker: Worker) -> None:
    await worker.subscribe(RATE)
    await stop_the_clock(db)
    await write(db, 5)
    answer = await worker.exchange(want=50)
    again = await worker.exchange(want=50, n=worker.n)
    assert again.ids == answer.ids
    assert await db.fetchval("select round(tokens::numeric, 6) from runtime.limits") == 0


async def test_a_paused_or_unlimited_subscription_is_not_held_by_another_ones_limit(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe({**TOTAL, "concurrency_total": 1}, "a.free=task.output")
    await write(db, 4)
    assert len(await worker.take()) == 5
    await db.fetchval("select stream_pause('a.one')")
    assert await worker.take() == []
    await insert(db, "task.output", 9)
    assert len(await worker.take()) == 1


@pytest.mark.parametrize("hours", [1, 1000])
async def test_l9_a_rate_goes_on_when_the_clock_is_set_back(db: Any, worker: Worker, hours: int) -> None:
    await worker.subscribe(RATE)
    await write(db, 9)
    assert len(await worker.take()) == 2
    await db.execute("update runtime.limits set filled_at = filled_at + make_interval(hours => $1)", hours)
    answer = await worker.exchange(want=9, due=True)
    # Nobody waits longer than for the next of them.
    assert answer.taken or 0 < answer.more["limited"] <= 0.2
    assert await db.fetchval("select filled_at <= clock_timestamp() from runtime.limits")
    await refill(db, 1)
    assert await worker.take()
