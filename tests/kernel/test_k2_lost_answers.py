"""K2: an exchange whose answer was lost is asked again under its number, answered as it was, and applied once."""

from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Answer, Taken, Worker, advance, insert, send
from tests.kernel.schedule import started, transaction, until_waiting
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


async def lose_an_answer(db: Any, worker: Worker) -> tuple[Taken, Answer, Answer]:
    """Finish one of four, report a late result beside it and take one more; then ask again under the same number."""
    await worker.subscribe("a.one=task.output")
    await send(db, *(("task.output", n) for n in range(4)))
    late, first = await worker.take(2)
    await worker.finish(late)
    reports = [
        late.report(emits=[{"key": "task.late", "value": 1}]),
        first.report(emits=[{"key": "task.done", "value": 1}]),
    ]
    answer = await worker.exchange(done=reports, want=1)
    again = await worker.exchange(done=reports, want=1, n=worker.n)
    return first, answer, again


async def test_k2_a_repeated_number_is_answered_as_it_was_and_applied_once(db: Any, worker: Worker) -> None:
    first, answer, again = await lose_an_answer(db, worker)
    assert again.raw["repeated"] is True
    assert again.refused == answer.refused
    assert (first.id, first.subscription) not in again.refused
    # Said at the second time by another statement, and in the same words.
    assert again.raw["taken"] == answer.raw["taken"]
    assert len(again.taken) == 1
    assert await db.fetchval("select count(*) from runtime.deliveries where lease is not null") == 1
    assert await db.fetchval("select count(*) from consciousness_stream where key = 'task.done'") == 1
    assert await db.fetchval("select count(*) from runtime.runs where message_id = $1", first.id) == 1


async def test_k2_without_it_a_finished_one_looks_refused_and_a_lease_is_forgotten(
    db: Any, worker: Worker
) -> None:
    await switch_off(db, "stream_exchange", "p.n < stream_exchange.n", "p.n <= stream_exchange.n")
    first, answer, again = await lose_an_answer(db, worker)
    assert (first.id, first.subscription) in again.refused
    assert again.ids != answer.ids
    assert await db.fetchval("select count(*) from runtime.deliveries where lease is not null") == 2


async def overtake(db: Any, worker: Worker) -> Answer:
    """A request that was given up on arrives after its successor."""
    await worker.subscribe("a.one=task.output")
    await send(db, ("task.output", 1), ("task.output", 2))
    (first,) = await worker.take(1)
    worker.n += 1
    await worker.exchange()
    return await worker.exchange(done=[first.report()], want=1, n=worker.n - 1)


async def test_k2_a_number_of_the_past_applies_and_takes_nothing(db: Any, worker: Worker) -> None:
    answer = await overtake(db, worker)
    assert answer.raw == {"n": worker.n, "stale": True}
    assert await db.fetchval(
        "select array_agg(lease is null order by message_id) from runtime.deliveries"
    ) == [
        False,
        True,
    ]


async def test_k2_without_it_a_request_of_the_past_takes_what_nobody_waits_for(
    db: Any, worker: Worker
) -> None:
    await switch_off(db, "stream_exchange", "p.n < stream_exchange.n", "p.n <> stream_exchange.n")
    await overtake(db, worker)
    # Its caller has gone: the lease of this one has to run out.
    assert await db.fetchval(
        "select array_agg(lease is null order by message_id) from runtime.deliveries"
    ) == [False]


async def test_k2_a_repetition_waits_for_the_first_that_is_still_under_way(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await worker.subscribe("a.one=task.output")
    await send(db, ("task.output", 1), ("task.output", 2))
    async with connect() as other_connection:
        # The same pump, new to the database: both make its row.
        retry = Worker(other_connection, id=worker.id, numbers=worker.numbers)
        worker.pump = retry.pump
        async with transaction(worker.connection) as first:
            answer = await worker.exchange(want=1, n=1)
            async with started(lambda: retry.exchange(want=1, n=1)) as again:
                await until_waiting(db, other_connection)
                await first.commit()
                assert (await again.outcome()).taken == answer.taken
        # And one whose first try came to nothing is applied.
        async with transaction(worker.connection) as first:
            await worker.exchange(done=[answer.taken[0].report()], n=2)
            async with started(lambda: retry.exchange(done=[answer.taken[0].report()], n=2)) as again:
                await until_waiting(db, other_connection)
                await first.rollback()
                assert (await again.outcome()).raw["refused"] == []
    assert await db.fetchval("select count(*) from runtime.deliveries") == 1
    assert await db.fetchval("select count(*) from runtime.pumps where id = $1", worker.pump) == 1


async def test_k2_a_repetition_returns_only_what_is_still_leased(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    assert (await worker.exchange(want=5)).ids == [message]
    await advance(db, 31)
    assert (await worker.exchange(want=5, n=worker.n)).ids == []
    async with connect() as other_connection:
        other = Worker(other_connection, numbers=worker.numbers)
        assert [each.id for each in await other.take()] == [message]
        assert (await worker.exchange(want=5, n=worker.n)).ids == []


async def test_k2_each_pump_counts_by_itself(db: Any, worker: Worker, connect: Connect) -> None:
    await worker.subscribe("a.one=task.output")
    first, second = await send(db, ("task.output", 1), ("task.output", 2))
    other = Worker(worker.connection, id=worker.id, numbers=worker.numbers)
    assert (await worker.exchange(want=1, n=7)).ids == [first]
    assert (await other.exchange(want=1, n=1)).ids == [second]
    assert (await worker.exchange(want=1, n=7)).ids == [first]


async def test_k2_l11_what_an_answer_does_not_bring_is_told_bare_and_given_back_uncounted(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    first, second = await send(db, ("task.output", 1), ("task.output", 2))
    await worker.exchange(want=5)
    # The answer never came, and the leases have run out meanwhile.
    await advance(db, 31)
    bare = await worker.exchange(want=5, n=worker.n, bare=True)
    assert bare.raw["taken"] == []
    assert [row[0] for row in bare.raw["leased"]] == [first, second]
    # They are renewed, so that they can be had under the same number.
    assert (await worker.exchange(want=5, n=worker.n)).ids == [first, second]
    given_back = [
        {"message": message, "subscription": subscription, "lease": lease, "outcome": "released"}
        for message, subscription, lease in bare.raw["leased"]
    ]
    assert (await worker.exchange(failed=given_back)).refused == set()
    assert await db.fetchval("select max(crashes + attempts) from runtime.deliveries") == 0
    assert (await worker.exchange(want=5)).ids == [first, second]


async def test_k2_l11_an_exchange_that_was_never_applied_can_be_made_bare(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    bare = await worker.exchange(want=5, bare=True)
    assert "repeated" not in bare.raw
    assert bare.raw["taken"] == []
    assert [row[0] for row in bare.more["leased"]] == [message]
    assert (await worker.exchange(want=5, n=worker.n)).ids == [message]
