"""K16: can a message slip in between a worker's last look and its sleep?

A worker marks itself asleep and commits; from its next exchange on it has a fence, F, and may sleep once all
transactions below F had ended before a look that found nothing. Whoever writes has either seen the mark, and calls,
or is below F, and is waited for.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import pytest
from asyncpg import PostgresError

from tests.kernel.conftest import Connect
from tests.kernel.driver import Answer, Worker, connected, insert
from tests.kernel.ears import Ears, ears
from tests.kernel.schedule import started, transaction, until_waiting
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

STOP = 4711
# Given two connections to write from; tells whether a look put the worker to sleep, and what its next look takes.
Scene: TypeAlias = Callable[[Any, Worker, Any, Any], Awaitable[tuple[bool, list[int]]]]


@pytest.fixture
async def sleepy(worker: Worker) -> Worker:
    """A worker with one subscription and nothing to do."""
    await worker.subscribe("a.one=task.>", announce=["notify"])
    # So long that no test is ever too slow for it.
    await worker.connection.execute("update runtime.policy set call_seconds = 600")
    return worker


@pytest.fixture
async def hearing(db: Any, sleepy: Worker) -> Ears:
    """Ears for it."""
    return await ears(db, sleepy)


@pytest.fixture
async def writer(connect: Connect) -> AsyncIterator[Any]:
    """A second connection, of somebody who writes."""
    async with connect() as connection:
        yield connection


async def lie_down(worker: Worker, fence: str | None = None) -> Answer:
    """One exchange of a worker that wants to sleep and looks everywhere."""
    return await worker.exchange(want=1, due=True, sleep=True, fence=fence)


def sleeps(looked: Answer) -> bool:
    """Whether a worker sleeps after this answer, as the plan decides it."""
    return bool(looked.more["quiet"]) and not looked.taken and not looked.more["full"]


async def test_k16_with_nobody_writing_two_exchanges_are_enough(sleepy: Worker) -> None:
    first = await lie_down(sleepy)
    assert (first.more["quiet"], first.more["fence"]) == (False, None)
    assert sleeps(await lie_down(sleepy))
    # A hint that proves empty: it stays marked, and one look is enough.
    assert sleeps(await lie_down(sleepy))
    # Awake in between, or free for something else: from the start.
    await sleepy.exchange(want=1)
    assert not sleeps(await lie_down(sleepy))
    assert sleeps(await lie_down(sleepy))
    assert not sleeps(await sleepy.exchange(want={"a.one": 1, 999: 1}, due=True, sleep=True))


async def test_k16_written_before_the_mark_committed_before_the_second_look(
    sleepy: Worker, writer: Any, hearing: Ears
) -> None:
    async with transaction(writer):
        message = await insert(writer, "task.a", 1)
        assert not sleeps(await lie_down(sleepy))
    assert await hearing.heard() == []
    assert (await lie_down(sleepy)).ids == [message]


async def drowse(worker: Worker, writing: Any) -> Answer:
    """Look until it would sleep, or until three looks after the writer has committed."""
    looked = await lie_down(worker)
    for turn in range(5):
        looked = await lie_down(worker, looked.more["fence"])
        if sleeps(looked) or looked.taken:
            break
        if turn == 1:
            await writing.commit()
    return looked


async def written_before_the_mark(sleepy: Worker, writer: Any) -> list[int]:
    """What it takes, when a writer began before the mark and commits while it tries to fall asleep."""
    async with transaction(writer) as writing:
        await insert(writer, "task.a", 1)
        return (await drowse(sleepy, writing)).ids


async def test_k16_written_before_the_mark_committed_after_the_second_look(
    sleepy: Worker, writer: Any, hearing: Ears
) -> None:
    assert len(await written_before_the_mark(sleepy, writer)) == 1
    assert await hearing.heard() == []


async def test_k16_without_the_fence_it_sleeps_over_it(
    db: Any, sleepy: Worker, writer: Any, hearing: Ears
) -> None:
    await switch_off(
        db, "runtime.fall_asleep",
        "pg_snapshot_xmin(pg_current_snapshot()) >= fence", "true",
    )  # fmt: skip
    assert await written_before_the_mark(sleepy, writer) == []
    assert await hearing.heard() == []


async def written_while_the_mark_is_made(sleepy: Worker, writer: Any) -> list[int]:
    """What it takes, when a writer begins after the marking transaction did and does not see the mark yet."""
    async with transaction(writer) as writing:
        async with transaction(sleepy.connection):
            first = await lie_down(sleepy)
            await insert(writer, "task.a", 1)
        for turn in range(4):
            looked = await lie_down(sleepy, first.more["fence"])
            if sleeps(looked) or looked.taken:
                return looked.ids
            if turn == 1:
                await writing.commit()
    raise AssertionError("it neither slept nor took anything")


async def test_k16_written_while_the_mark_is_made(sleepy: Worker, writer: Any, hearing: Ears) -> None:
    assert len(await written_while_the_mark_is_made(sleepy, writer)) == 1
    assert await hearing.heard() == []


async def test_k16_the_marking_transaction_is_no_fence(
    db: Any, sleepy: Worker, writer: Any, hearing: Ears
) -> None:
    await switch_off(
        db, "runtime.fall_asleep", "where w.id = me.id; return query select null::xid8, false",
        "where w.id = me.id; return query select pg_current_xact_id(), false",
    )  # fmt: skip
    assert await written_while_the_mark_is_made(sleepy, writer) == []
    assert await hearing.heard() == []


async def test_k16_written_after_the_mark_it_is_called(sleepy: Worker, writer: Any, hearing: Ears) -> None:
    await lie_down(sleepy)
    async with transaction(writer):
        message = await insert(writer, "task.a", 1)
        # Above the fence or below it: it has seen the mark.
        looked = await lie_down(sleepy)
        assert not sleeps(looked)
    assert await hearing.heard() == [sleepy.channel]
    assert (await lie_down(sleepy, looked.more["fence"])).ids == [message]


# As if somebody else had been quicker.
_TAKEN_AWAY = "delete from runtime.deliveries"


async def left_at_a_call(_db: Any, sleepy: Worker, caller: Any, writer: Any) -> tuple[bool, list[int]]:
    """Somebody writes who leaves it at the call of another, and commits after a look."""
    await sleepy.fall_asleep()
    fence = (await lie_down(sleepy)).more["fence"]
    await insert(caller, "task.a", 1)
    await caller.execute(_TAKEN_AWAY)
    async with transaction(writer) as writing:
        await insert(writer, "task.a", 2)
        slept = sleeps(await lie_down(sleepy, fence))
        await writing.commit()
    return slept, (await lie_down(sleepy)).ids


async def called_within_a_look(db: Any, sleepy: Worker, caller: Any, writer: Any) -> tuple[bool, list[int]]:
    """Two write while a look is under way that has asked already whether it may sleep; one leaves it at the call."""
    await sleepy.fall_asleep()
    return await within_a_look(db, sleepy, caller, writer)


async def within_a_look(db: Any, sleepy: Worker, caller: Any, writer: Any) -> tuple[bool, list[int]]:
    """What happens there, from when it sleeps."""
    before = "looked_at := clock_timestamp();"
    await switch_off(
        db, "public.stream_exchange", before, f"perform pg_advisory_xact_lock_shared({STOP}); {before}"
    )
    await db.execute(f"select pg_advisory_lock({STOP})")
    async with transaction(writer) as writing:
        async with started(lambda: lie_down(sleepy)) as look:
            await until_waiting(db, sleepy.connection)
            await insert(caller, "task.a", 1)
            await insert(writer, "task.a", 2)
            await db.execute(_TAKEN_AWAY)
            await db.execute(f"select pg_advisory_unlock({STOP})")
            fence = (await look.outcome()).more["fence"]
        slept = sleeps(await lie_down(sleepy, fence))
        await writing.commit()
    return slept, (await lie_down(sleepy)).ids


async def called_after_a_refusal(db: Any, sleepy: Worker, caller: Any, writer: Any) -> tuple[bool, list[int]]:
    """The same, but an exchange before that look was refused, and took its number with it."""
    await sleepy.fall_asleep()
    with pytest.raises(PostgresError):
        await sleepy.exchange(done=[{"message": "none"}])
    return await within_a_look(db, sleepy, caller, writer)


@pytest.mark.parametrize("scene", [left_at_a_call, called_within_a_look, called_after_a_refusal])
async def test_k16_who_leaves_it_at_a_call_is_waited_for(
    db: Any, sleepy: Worker, connect: Connect, writer: Any, hearing: Ears, scene: Scene
) -> None:
    async with connect() as caller:
        slept, taken = await scene(db, sleepy, caller, writer)
    assert not slept
    assert len(taken) == 1
    assert await hearing.heard() == [sleepy.channel]


@pytest.mark.parametrize("scene", [left_at_a_call, called_within_a_look, called_after_a_refusal])
async def test_k16_deaf_to_the_call_that_it_was_left_at_it_sleeps_over_a_message(
    db: Any, sleepy: Worker, connect: Connect, writer: Any, hearing: Ears, scene: Scene
) -> None:
    # What matters within a look is the second rule alone.
    if scene is left_at_a_call:
        await switch_off(
            db, "runtime.fall_asleep", "called = fall_asleep.pump.previous then", "called = -1 then"
        )
    if scene is called_after_a_refusal:
        # As if numbers were never missing.
        await switch_off(db, "runtime.fall_asleep", "pump.last_but_one", "pump.previous - 1")
    else:
        await switch_off(db, "runtime.fall_asleep", "elsif called is not null", "elsif false")
    async with connect() as caller:
        slept, _ = await scene(db, sleepy, caller, writer)
    assert slept
    assert await hearing.heard() == [sleepy.channel]


async def commit_within_a_look(db: Any, sleepy: Worker, writer: Any, *, before: str) -> Answer:
    """A look that is halted before a piece of the exchange, while a writer from before the mark commits."""
    await switch_off(db, "public.stream_exchange", before, f"perform pg_advisory_xact_lock({STOP}); {before}")
    async with transaction(writer) as writing:
        await insert(writer, "task.a", 1)
        await db.execute(f"select pg_advisory_lock({STOP})")
        async with started(lambda: lie_down(sleepy)) as marking:
            await until_waiting(db, sleepy.connection)
            await db.execute(f"select pg_advisory_unlock({STOP})")
            await marking.outcome()
        await db.execute(f"select pg_advisory_lock({STOP})")
        async with started(lambda: lie_down(sleepy)) as look:
            await until_waiting(db, sleepy.connection)
            await writing.commit()
            await db.execute(f"select pg_advisory_unlock({STOP})")
            return await look.outcome()


@pytest.mark.parametrize("before", ["if options ? 'stay' then", "if new_lease is not null then"])
async def test_k16_committed_in_the_middle_of_the_look(
    db: Any, sleepy: Worker, writer: Any, hearing: Ears, before: str
) -> None:
    looked = await commit_within_a_look(db, sleepy, writer, before=before)
    assert await hearing.heard() == []
    assert len(looked.taken) == 1


async def test_k16_asked_after_the_take_whether_it_is_quiet_it_sleeps_over_a_message(
    db: Any, sleepy: Worker, writer: Any, hearing: Ears
) -> None:
    # The same question, asked once more at the end of the exchange.
    end = "if refused <> '[]' then"
    late = (
        "answer := answer || jsonb_build_object('quiet', "
        "pg_snapshot_xmin(pg_current_snapshot()) >= pg_current_xact_id());"
    )
    await switch_off(db, "public.stream_exchange", end, f"{late} {end}")
    looked = await commit_within_a_look(db, sleepy, writer, before=late)
    assert looked.taken == []
    assert looked.more["quiet"]
    assert await hearing.heard() == []


async def test_k16_a_long_foreign_transaction_keeps_it_looking_and_only_if_it_writes(
    db: Any, sleepy: Worker, kernel_database: str
) -> None:
    elsewhere = kernel_database.replace(urlsplit(kernel_database).path, "/postgres")
    async with connected(elsewhere) as foreign:
        async with foreign.transaction():
            await foreign.fetchval("select 1")
            await sleepy.fall_asleep()
        async with foreign.transaction():
            await foreign.fetchval("select pg_current_xact_id()")
            await sleepy.exchange(want=1)
            looked = await lie_down(sleepy)
            for _ in range(4):
                looked = await lie_down(sleepy, looked.more["fence"])
                assert not sleeps(looked)
            # It looks on, so nothing waits for the foreign transaction.
            message = await insert(db, "task.a", 1)
            looked = await lie_down(sleepy, looked.more["fence"])
            assert looked.ids == [message]
            await sleepy.finish(*looked.taken)
    await sleepy.fall_asleep()


async def test_k16_a_fence_is_kept_so_that_later_writers_do_not_put_sleep_off(
    sleepy: Worker, writer: Any, connect: Connect
) -> None:
    async with connect() as other:
        await lie_down(sleepy)
        async with transaction(writer):
            await writer.fetchval("select pg_current_xact_id()")
            looked = await lie_down(sleepy)
            assert not sleeps(looked)
            fence = looked.more["fence"]
            later = transaction(other)
            async with later:
                await other.fetchval("select pg_current_xact_id()")
                assert not sleeps(await lie_down(sleepy, fence))
                await writer.execute("commit")
                # Whoever began later has seen the mark.
                assert sleeps(await lie_down(sleepy, fence))


async def test_k16_a_repeated_answer_puts_nobody_to_sleep(sleepy: Worker) -> None:
    await lie_down(sleepy)
    repeated = await sleepy.exchange(want=1, due=True, sleep=True, n=sleepy.n)
    assert not repeated.more.get("quiet")
    with anyio.fail_after(60):
        await sleepy.fall_asleep()
