"""K1: only who holds the lease of now may finish, fail or renew a delivery; a number is no lease."""

from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Answer, Taken, Worker, insert, send
from tests.kernel.schedule import started, transaction, until_waiting
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


async def abandon(db: Any) -> None:
    """Let every lease end now."""
    await db.execute("update runtime.deliveries set visible_at = clock_timestamp() where lease is not null")


async def overtaken(db: Any, worker: Worker) -> tuple[Taken, Taken]:
    """One delivery taken twice: the lease that ended, and its successor."""
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    (old,) = await worker.take()
    await abandon(db)
    (new,) = await worker.take()
    return old, new


async def test_g3_k1_only_the_lease_of_now_finishes_fails_or_renews(db: Any, worker: Worker) -> None:
    old, new = await overtaken(db, worker)
    place = (old.id, old.subscription)
    assert old.lease != new.lease

    assert (await worker.finish(old, emits=[{"key": "task.late", "value": 1}])).refused == {place}
    assert (await worker.fail(old, outcome="dead")).refused == {place}
    assert (await worker.fail(old, outcome="released")).refused == {place}
    assert (await worker.exchange(renew=[old.report()])).more["lost"] == [list(place)]
    assert await db.fetchval("select count(*) from consciousness_stream") == 1
    assert await db.fetchval("select count(*) from runtime.dead_letters") == 0
    assert await db.fetchval("select lease::text from runtime.deliveries") == new.lease

    assert (await worker.exchange(renew=[new.report()])).more["lost"] == []
    assert (await worker.finish(new)).refused == set()
    assert (await worker.finish(new)).refused == {place}
    assert await db.fetchval("select array_agg(outcome order by ended_at) from runtime.runs") == [
        "crashed",
        "done",
    ]


async def test_k1_without_the_fence_a_late_worker_ends_what_another_one_is_at(
    db: Any, worker: Worker
) -> None:
    await switch_off(db, "runtime.finish", "and d.lease = r.lease")
    old, new = await overtaken(db, worker)
    assert (await worker.finish(old)).refused == set()
    assert (await worker.finish(new)).refused == {(new.id, new.subscription)}


async def test_g2_k1_a_delivery_has_one_lease_at_a_time(db: Any, worker: Worker, connect: Connect) -> None:
    await worker.subscribe("a.one=task.output")
    first, second = await send(db, ("task.output", 1), ("task.output", 2))
    async with connect() as other_connection, transaction(worker.connection):
        other = Worker(other_connection, numbers=worker.numbers)
        assert [each.id for each in await worker.take(1)] == [first]
        # The first is leased in a transaction that has not ended: it is passed over, not waited for.
        assert [each.id for each in await other.take()] == [second]


async def report_while_another_takes_over(
    db: Any, worker: Worker, connect: Connect, old: Taken
) -> tuple[Answer, list[Taken]]:
    """The end of a lease is counted and the delivery taken anew in an open transaction; then `old` is reported."""
    async with connect() as other_connection:
        other = Worker(other_connection, numbers=worker.numbers)
        async with transaction(other_connection) as taking_over:
            taken = await other.take()
            async with started(lambda: worker.finish(old)) as late:
                await until_waiting(db, worker.connection)
                await taking_over.commit()
                return await late.outcome(), taken


async def test_g3_k1_a_report_that_waited_for_its_successor_is_refused(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    (old,) = await worker.take()
    await abandon(db)
    late, (new,) = await report_while_another_takes_over(db, worker, connect, old)
    assert late.refused == {(old.id, old.subscription)}
    assert (await worker.finish(new)).refused == set()


async def numbers_come_again(db: Any, worker: Worker, how: str) -> tuple[Taken, Taken]:
    """A delivery taken twice, with the same attempts and crashes both times."""
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    (old,) = await worker.take()
    if how == "given back":
        await worker.fail(old, outcome="released")
    elif how == "replayed":
        await worker.finish(old)
        await db.fetchval("select stream_replay('a.one')")
    elif how == "redriven":
        await worker.fail(old, outcome="dead")
        await db.fetchval("select stream_redrive(subscription => 'a.one')")
    else:
        # The taking committed asynchronously and the database crashed before it was flushed.
        await db.execute("update runtime.deliveries set visible_at = null, lease = null")
    (new,) = await worker.take()
    assert (new.id, new.attempts, new.crashes) == (message, old.attempts, old.crashes)
    return old, new


@pytest.mark.parametrize("how", ["given back", "replayed", "redriven", "forgotten by a crash"])
async def test_k1_a_lease_never_comes_again_where_numbers_do(db: Any, worker: Worker, how: str) -> None:
    old, new = await numbers_come_again(db, worker, how)
    assert (await worker.finish(old)).refused == {(old.id, old.subscription)}
    assert (await worker.finish(new)).refused == set()


async def test_k1_counters_are_no_fence(db: Any, worker: Worker) -> None:
    # As if a report carried its attempt instead: both holders would say 0.
    await switch_off(db, "runtime.finish", "and d.lease = r.lease", "and d.attempts + d.crashes = 0")
    old, new = await numbers_come_again(db, worker, "given back")
    assert (await worker.finish(old)).refused == set()
    assert (await worker.finish(new)).refused == {(new.id, new.subscription)}


async def test_k1_an_exchange_that_only_takes_commits_asynchronously(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    await send(db, ("task.output", 1), ("task.output", 2), ("task.output", 3))

    async def commits_how() -> str:
        return str(await worker.connection.fetchval("show synchronous_commit"))

    async with transaction(worker.connection):
        first, second, third = await worker.take()
        assert await commits_how() == "off"
    async with transaction(worker.connection):
        await worker.finish(first)
        assert await commits_how() == "on"
    async with transaction(worker.connection):
        await worker.fail(second)
        assert await commits_how() == "on"
    async with transaction(worker.connection):
        await worker.exchange(renew=[third.report()], want=1)
        assert await commits_how() == "off"


@pytest.mark.parametrize("how", ["done", "failed", "renew"])
async def test_k1_renewed_while_it_is_reported_it_is_still_held(
    db: Any, worker: Worker, connect: Connect, how: str
) -> None:
    await worker.subscribe("a.one=task.output")
    await send(db, ("task.output", 1), ("task.output", 2))
    taken = await worker.take()
    reports = [
        each.report(outcome="failed", delay=60) if how == "failed" else each.report() for each in taken
    ]
    async with connect() as connection:
        pump = Worker(connection, id=worker.id, numbers=worker.numbers)
        async with transaction(connection) as renewing:
            await pump.exchange(renew=[taken[1].report()])
            async with started(lambda: worker.exchange(**{how: reports})) as reporting:
                await until_waiting(db, worker.connection)
                await renewing.commit()
                answer = await reporting.outcome()
    assert answer.refused == set()
    assert not answer.more.get("lost")
    left = await db.fetch("select lease is null as is_free from runtime.deliveries")
    assert [row["is_free"] for row in left] == {"done": [], "failed": [True] * 2, "renew": [False] * 2}[how]
    assert await db.fetchval("select count(*) from runtime.runs") == (0 if how == "renew" else 2)
