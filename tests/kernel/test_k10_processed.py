"""K10: `processed` turns true when the last delivery that counts has ended; no exchange waits for a row to say so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Taken, Worker, insert, send
from tests.kernel.schedule import started, transaction, until_waiting
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


async def processed(db: Any, message: int) -> bool:
    """What a reader of the table sees."""
    return bool(await db.fetchval("select processed from consciousness_stream where id = $1", message))


async def unmarked(db: Any) -> list[int]:
    """Messages left to the sweep."""
    return [row["message_id"] for row in await db.fetch("select message_id from runtime.unmarked order by 1")]


async def sweep(worker: Worker) -> None:
    """The part of an exchange that comes at a low rate."""
    await worker.exchange(beat=True)


@asynccontextmanager
async def held_by_a_reader(connect: Connect, message: int) -> AsyncIterator[Any]:
    """A program that reads the table itself, as the seed's receiver does, with the row locked."""
    async with connect() as reader, transaction(reader) as reading:
        await reader.fetch("select id from consciousness_stream where id = $1 for update", message)
        yield reading


async def deliver(db: Any, worker: Worker, *subscriptions: str) -> tuple[int, dict[str, Taken]]:
    """One message under task.output, taken; its deliveries by the name of the subscription."""
    numbers = await worker.subscribe(*subscriptions)
    message = await insert(db, "task.output", 1)
    names = {number: name for name, number in numbers.items()}
    return message, {names[each.subscription]: each for each in await worker.take()}


async def test_k10_the_last_delivery_of_an_exact_key_marks_the_message(db: Any, worker: Worker) -> None:
    message, of = await deliver(db, worker, "a.exact=task.output", "b.exact=task.output", "c.wild=task.*")
    await worker.finish(of["a.exact"])
    assert not await processed(db, message)
    # A dead letter has ended too.
    await worker.fail(of["b.exact"], outcome="dead")
    assert await processed(db, message)
    await worker.finish(of["c.wild"])
    assert await processed(db, message)
    assert await unmarked(db) == []


async def test_k10_without_a_subscription_that_marks_it_stays_false(db: Any, worker: Worker) -> None:
    declared = {"name": "b.quiet", "patterns": ["task.output"], "marks_processed": False}
    await worker.subscribe("c.wild=task.>", declared)
    message = await insert(db, "task.output", 1)
    await worker.finish(*await worker.take())
    await sweep(worker)
    assert not await processed(db, message)


async def test_k10_once_true_it_never_goes_back(db: Any, worker: Worker, connect: Connect) -> None:
    message, of = await deliver(db, worker, "a.exact=task.output")
    await worker.finish(*of.values())
    assert await processed(db, message)
    await db.fetchval("select stream_replay('a.exact')")
    async with connect() as other_connection:
        newcomer = Worker(other_connection)
        await newcomer.subscribe({"name": "z.late", "patterns": ["task.output"], "start": "earliest"})
        assert await processed(db, message)
        await newcomer.finish(*await newcomer.take())
    await worker.finish(*await worker.take())
    assert await processed(db, message)


async def test_k10_a_replay_does_not_count(db: Any, worker: Worker) -> None:
    message, of = await deliver(db, worker, "a.exact=task.output", "c.wild=task.*")
    await worker.finish(of["c.wild"])
    await db.fetchval("select stream_replay('c.wild')")
    await worker.finish(of["a.exact"])
    assert await processed(db, message)


@pytest.mark.parametrize(
    "subscriptions", [["a.exact=task.output"], ["a.exact=task.output", "b.exact=task.output"]]
)
async def test_g11_k10_an_exchange_does_not_wait_for_a_reader_and_the_sweep_marks_later(
    db: Any, worker: Worker, connect: Connect, subscriptions: list[str]
) -> None:
    message, of = await deliver(db, worker, *subscriptions)
    async with held_by_a_reader(connect, message):
        await worker.finish(*of.values())
        assert await unmarked(db) == [message]
        await sweep(worker)
        assert await unmarked(db) == [message]
        assert not await processed(db, message)
    await sweep(worker)
    assert await processed(db, message)
    assert await unmarked(db) == []


@pytest.mark.parametrize(
    "subscriptions", [["a.exact=task.output"], ["a.exact=task.output", "b.exact=task.output"]]
)
async def test_k10_without_it_a_reader_of_the_table_stops_the_worker(
    db: Any, worker: Worker, connect: Connect, subscriptions: list[str]
) -> None:
    message, of = await deliver(db, worker, *subscriptions)
    which = "sole" if len(subscriptions) == 1 else "shared"
    locking = f"where m.id = any ({which}) and not m.processed order by m.id for no key update"
    await switch_off(db, "runtime.mark_processed", f"{locking} skip locked", locking)
    async with (
        held_by_a_reader(connect, message) as reading,
        started(lambda: worker.finish(*of.values())) as finishing,
    ):
        await until_waiting(db, worker.connection)
        assert not finishing.has_ended
        await reading.rollback()
        await finishing.outcome()


async def finish_side_by_side(db: Any, worker: Worker, connect: Connect) -> int:
    """Two workers finish the two deliveries of one message in transactions that do not see each other."""
    message, of = await deliver(db, worker, "a.exact=task.output", "b.exact=task.output")
    async with connect() as other_connection, transaction(worker.connection):
        await worker.finish(of["a.exact"])
        await Worker(other_connection, numbers=worker.numbers).finish(of["b.exact"])
    return message


async def test_k10_two_that_end_at_the_same_time_do_not_both_think_the_other_goes_on(
    db: Any, worker: Worker, connect: Connect
) -> None:
    message = await finish_side_by_side(db, worker, connect)
    assert await unmarked(db) == [message]
    await sweep(worker)
    assert await processed(db, message)


async def test_k10_without_the_row_lock_nobody_marks(db: Any, worker: Worker, connect: Connect) -> None:
    looking = "where m.id = any (shared) and not m.processed order by m.id"
    await switch_off(db, "runtime.mark_processed", f"{looking} for no key update skip locked", looking)
    message = await finish_side_by_side(db, worker, connect)
    await sweep(worker)
    assert await unmarked(db) == []
    assert not await processed(db, message)


async def test_k10_a_sweep_under_way_loses_nothing_that_ends_beside_it(
    db: Any, worker: Worker, connect: Connect
) -> None:
    message, of = await deliver(db, worker, "a.exact=task.output", "b.exact=task.output")
    async with held_by_a_reader(connect, message):
        await worker.finish(of["a.exact"])
    async with connect() as other_connection:
        other = Worker(other_connection, id=worker.id, numbers=worker.numbers)
        async with transaction(other_connection) as sweeping:
            # It holds the message, sees a delivery go on, and strikes the message off its list.
            await sweep(other)
            async with started(lambda: worker.finish(of["b.exact"])) as finishing:
                await until_waiting(db, worker.connection)
                await sweeping.commit()
                await finishing.outcome()
    assert await unmarked(db) == [message]
    await sweep(worker)
    assert await processed(db, message)


async def end_between_a_sweep_s_look_and_its_strike(
    db: Any, worker: Worker, connect: Connect, *, waits: bool
) -> int:
    """The last delivery ends when a sweep has looked at the message and has not yet struck it off its list."""
    message, of = await deliver(db, worker, "a.exact=task.output", "b.exact=task.output")
    async with held_by_a_reader(connect, message):
        await worker.finish(of["a.exact"])
    await db.execute(
        "create function public.pause_here() returns trigger language plpgsql as "
        "$$ begin perform pg_advisory_xact_lock(1); return old; end $$; "
        "create trigger pause_here before delete on runtime.unmarked for each row execute function pause_here()"
    )
    async with connect() as other_connection:
        other = Worker(other_connection, id=worker.id, numbers=worker.numbers)
        async with transaction(db) as pausing:
            await db.execute("select pg_advisory_xact_lock(1)")
            async with started(lambda: sweep(other)) as sweeping:
                await until_waiting(db, other_connection)
                async with started(lambda: worker.finish(of["b.exact"])) as finishing:
                    await (until_waiting(db, worker.connection) if waits else finishing.outcome())
                    await pausing.commit()
                    await sweeping.outcome()
                    await finishing.outcome()
    await sweep(worker)
    return message


async def test_k10_a_sweep_that_has_looked_loses_nothing_that_ends_before_it_strikes_off(
    db: Any, worker: Worker, connect: Connect
) -> None:
    message = await end_between_a_sweep_s_look_and_its_strike(db, worker, connect, waits=True)
    assert await processed(db, message)


async def test_k10_without_touching_the_list_such_an_end_is_lost(
    db: Any, worker: Worker, connect: Connect
) -> None:
    listing = "not m.id = any (locked) and not m.processed order by m.id on conflict"
    touching = f"{listing} (message_id) do update set message_id = excluded.message_id"
    await switch_off(db, "runtime.mark_processed", touching, f"{listing} do nothing")
    message = await end_between_a_sweep_s_look_and_its_strike(db, worker, connect, waits=False)
    assert not await processed(db, message)


async def test_k10_a_message_deleted_meanwhile_is_struck_off(
    db: Any, worker: Worker, connect: Connect
) -> None:
    message, of = await deliver(db, worker, "a.exact=task.output")
    async with held_by_a_reader(connect, message):
        await worker.finish(*of.values())
    await db.execute("delete from consciousness_stream")
    await sweep(worker)
    assert await unmarked(db) == []


async def test_g11_the_seed_s_reader_runs_beside_agents(db: Any, worker: Worker, connect: Connect) -> None:
    """The reader's own loop: poll by key and processed = false, work, set processed = true."""
    await worker.subscribe("c.wild=task.>", "a.exact=task.output")
    sent = [await insert(db, "task.input", {"n": n}, agent="seed") for n in range(3)]
    (shared,) = await send(db, ("task.output", "both"))
    async with connect() as reader:
        waiting = (
            "select id, value from consciousness_stream where key = $1 and processed = false order by id"
        )
        rows = await reader.fetch(waiting, "task.input")
        assert [(row["id"], row["value"]) for row in rows] == [
            (each, {"n": n}) for n, each in enumerate(sent)
        ]
        rows += await reader.fetch(waiting, "task.output")
        for row in rows:
            await reader.execute("update consciousness_stream set processed = true where id = $1", row["id"])
        assert await reader.fetch(waiting, "task.input") == []
    # The reader took no agent's message away.
    taken = await worker.take()
    assert sorted(each.id for each in taken) == [*sent, shared, shared]
    await worker.finish(*taken)
    assert await db.fetchval("select bool_and(processed) from consciousness_stream")


async def test_g11_the_key_of_a_stored_message_does_not_change(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.exact=task.output")
    message = await insert(db, "task.output", 1)
    with pytest.raises(asyncpg.PostgresError, match="the key of a message does not change"):
        await db.execute("update consciousness_stream set key = 'task.other' where id = $1", message)
    await db.execute(
        "update consciousness_stream set value = '2', agent = 'x', key = key where id = $1", message
    )
    assert [each.value for each in await worker.take()] == [2]
