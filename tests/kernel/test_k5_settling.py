"""K5: does a new subscription miss what somebody is just writing, or get anything twice?"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, connected, insert, send
from tests.kernel.schedule import transaction
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

EARLIEST = {"name": "a.one", "patterns": ["task.>"], "start": "earliest"}
LATEST = {"name": "a.late", "patterns": ["task.>"], "start": "latest"}
STRICTER = ["repeatable_read", "serializable"]


@pytest.fixture
async def writer(connect: Connect) -> AsyncIterator[Any]:
    """A second connection, of somebody who writes."""
    async with connect() as connection:
        yield connection


async def unsettled(worker: Worker, exchanges: int = 5) -> list[int]:
    """What is still unsettled after so many exchanges, each of which could have been the last step."""
    for _ in range(exchanges):
        left = (await worker.exchange(settle=True)).more["unsettled"]
    return list(left)


@asynccontextmanager
async def with_old_snapshot(connection: Any, isolation: str) -> AsyncIterator[None]:
    """A transaction in stricter isolation that has only looked so far."""
    async with connection.transaction(isolation=isolation):
        await connection.fetchval("select count(*) from consciousness_stream")
        yield


async def test_g1_k5_what_an_open_writer_commits_later_is_found_once(
    db: Any, worker: Worker, writer: Any
) -> None:
    (history,) = await send(db, ("task.a", "history"))
    async with transaction(writer) as writing:
        missed = await insert(writer, "task.a", "before the subscription")
        numbers = await worker.subscribe(EARLIEST, LATEST, settle=False)
        seen = await insert(writer, "task.a", "after it")
        later = await insert(db, "task.a", "from another transaction")
        assert set(await unsettled(worker)) == set(numbers.values())
        # Delivered, and not taken: what came before must be known first.
        assert await worker.take() == []
        await writing.commit()
    assert await unsettled(worker) == []
    taken = await worker.take()
    assert [each.id for each in taken if each.subscription == numbers["a.one"]] == [
        history, missed, seen, later
    ]  # fmt: skip
    after = await insert(db, "task.a", "after settling")
    assert [each.id for each in await worker.take() if each.subscription == numbers["a.late"]] == [after]
    # Nothing of the history, and nothing begun before; what saw it in time it got.
    assert [each.id for each in taken if each.subscription == numbers["a.late"]] == [seen, later]


async def test_k5_settled_without_waiting_for_writers_a_message_is_lost(
    db: Any, worker: Worker, writer: Any
) -> None:
    rule = "pg_snapshot_xmin(pg_current_snapshot()) > s.settling_xid"
    await switch_off(db, "runtime.settle", rule, "true")
    async with transaction(writer):
        await insert(writer, "task.a", 1)
        await worker.subscribe(EARLIEST)
    assert await worker.take() == []


async def subscribe_between_two_writers(
    db: Any, worker: Worker, writer: Any, connect: Connect
) -> tuple[int, list[int]]:
    """While a subscription is being made, one transaction begins and then another inserts; the first one ends.

    Returns the message, and what is unsettled while its writer is still open.
    """
    async with connect() as idle, transaction(writer) as writing:
        async with transaction(idle), transaction(worker.connection) as subscribing:
            await worker.subscribe(EARLIEST, settle=False)
            await idle.fetchval("select pg_current_xact_id()")
            message = await insert(writer, "task.a", 1)
            await subscribing.commit()
            # To a snapshot of now, the writer's transaction lies beyond the last one it knows of.
            own = await writer.fetchval("select pg_current_xact_id()")
            assert own > await db.fetchval("select pg_snapshot_xmax(pg_current_snapshot())")
            await worker.exchange(settle=True)
        left = await unsettled(worker)
        await writing.commit()
    return message, left


async def test_g1_k5_writers_beyond_a_snapshots_xmax_are_waited_for(
    db: Any, worker: Worker, writer: Any, connect: Connect
) -> None:
    message, left = await subscribe_between_two_writers(db, worker, writer, connect)
    assert left == list(worker.numbers.values())
    await worker.settle()
    assert [each.id for each in await worker.take()] == [message]


async def test_k5_a_snapshots_xmax_is_no_mark(db: Any, worker: Worker, writer: Any, connect: Connect) -> None:
    await switch_off(
        db, "runtime.settle", "set settling_fenced = true",
        "set settling_fenced = true, settling_xid = pg_snapshot_xmax(pg_current_snapshot())",
    )  # fmt: skip
    _message, left = await subscribe_between_two_writers(db, worker, writer, connect)
    assert left == []
    assert await worker.take() == []


@pytest.mark.parametrize("isolation", STRICTER)
async def test_g1_k5_a_stricter_writer_with_a_snapshot_too_old_begins_anew(
    db: Any, worker: Worker, writer: Any, isolation: str
) -> None:
    async def write_while_somebody_subscribes() -> None:
        async with with_old_snapshot(writer, isolation):
            await worker.subscribe(EARLIEST)
            await insert(writer, "task.a", 1)

    with pytest.raises(asyncpg.SerializationError) as refused:
        await write_while_somebody_subscribes()
    assert refused.value.sqlstate == "40001"
    async with with_old_snapshot(writer, isolation):
        message = await insert(writer, "task.a", 1)
    assert [each.id for each in await worker.take()] == [message]


async def test_k5_let_through_with_an_old_snapshot_its_message_is_lost(
    db: Any, worker: Worker, writer: Any
) -> None:
    await switch_off(db, "runtime.fan_out", "perform runtime.check_snapshot();", "null;")
    async with with_old_snapshot(writer, "repeatable_read"):
        await worker.subscribe(EARLIEST)
        await insert(writer, "task.a", 1)
    assert await worker.take() == []


async def write_while_the_fence_rises(worker: Worker, writer: Any) -> list[int]:
    """A stricter writer inserts after the fencing transaction has its xid and before the fence is up.

    Returns what is unsettled while it is still open.
    """
    async with with_old_snapshot(writer, "repeatable_read"):
        await worker.subscribe(EARLIEST, settle=False)
        async with transaction(worker.connection):
            await worker.connection.fetchval("select pg_current_xact_id()")
            await insert(writer, "task.a", 1)
            await worker.exchange(settle=True)
        return await unsettled(worker)


async def test_g1_k5_a_stricter_writer_that_read_the_fence_before_it_rose_is_waited_for(
    db: Any, worker: Worker, writer: Any
) -> None:
    assert await write_while_the_fence_rises(worker, writer) == list(worker.numbers.values())
    await worker.settle()
    assert [each.value for each in await worker.take()] == [1]


async def test_k5_fence_and_mark_in_one_transaction_let_one_slip_through(
    db: Any, worker: Worker, writer: Any
) -> None:
    await switch_off(
        db, "runtime.settle", "set settling_fenced = true",
        "set settling_fenced = true, settling_xid = pg_current_xact_id()",
    )  # fmt: skip
    assert await write_while_the_fence_rises(worker, writer) == []
    assert await worker.take() == []


async def test_g1_k5_history_comes_in_pages_and_nothing_twice(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await db.execute(
        "insert into consciousness_stream (key) "
        "select case when n % 6 = 0 then 'other.a' else 'task.a' end from generate_series(1, 12000) n"
    )
    await worker.subscribe(EARLIEST, settle=False)

    async def pages() -> int:
        return int(await db.fetchval("select count(*) from runtime.deliveries where message_id <= 12000"))

    sizes, during = [], []
    async with connect() as connection:
        # Another process of the same agent goes on where the first one stopped.
        other = Worker(connection)
        await other.subscribe(EARLIEST, settle=False)
        for each in (worker, worker, worker, other, other):
            left = (await each.exchange(settle=True)).more["unsettled"]
            sizes.append(await pages())
            during.append(await insert(db, "task.a", "during"))
            if left:
                assert await each.take(1) == []
    assert left == []
    # Two steps to the mark, then pages of 5,000 messages, of which each sixth is somebody else's.
    assert sizes == [0, 0, 4167, 8334, 10000]
    taken = await worker.take(20000)
    assert len({each.id for each in taken}) == len(taken) == 10000 + len(during)


async def test_k5_a_subscription_locked_by_another_worker_counts_as_not_settled(
    worker: Worker, connect: Connect
) -> None:
    numbers = await worker.subscribe(EARLIEST, settle=False)
    async with connect() as connection:
        other = Worker(connection)
        await other.subscribe(EARLIEST, settle=False)
        await worker.exchange(settle=True)
        await worker.exchange(settle=True)
        async with transaction(worker.connection):
            assert (await worker.exchange(settle=True)).more["unsettled"] == []
            with anyio.fail_after(60):
                looked = await other.exchange(settle=True, want=10, due=True)
            assert looked.more["unsettled"] == list(numbers.values())
            assert looked.taken == []
        assert (await other.exchange(settle=True)).more["unsettled"] == []


async def test_k5_an_idle_writing_transaction_anywhere_delays_settling_and_is_told(
    db: Any, worker: Worker, kernel_database: str
) -> None:
    elsewhere = kernel_database.replace(urlsplit(kernel_database).path, "/postgres")
    async with connected(elsewhere) as idle:
        async with idle.transaction():
            await idle.fetchval("select 1")
            # One that only reads holds nobody up.
            await worker.subscribe(LATEST)
        async with idle.transaction():
            await idle.fetchval("select pg_current_xact_id()")
            await worker.subscribe(EARLIEST, LATEST, settle=False)
            assert await unsettled(worker) == [worker.numbers["a.one"]]
            told = await db.fetchval("select stream_stats()")
            assert told["oldest_transaction_seconds"] > 0
            assert {s["name"]: s["settled"] for s in told["subscriptions"]} == {
                "a.one": False,
                "a.late": True,
            }
    await worker.settle()
