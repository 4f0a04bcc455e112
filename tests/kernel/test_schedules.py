"""Timers in the kernel: one tick per slot whoever asks, and what was missed is known."""

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker

pytestmark = pytest.mark.anyio

SPEC = "every 60"


async def schedule(worker: Worker, name: str = "clock.strike", spec: str | None = SPEC, **more: str) -> Any:
    """Declare one timer, or say that the handler has none."""
    given = {"name": name} if spec is None else {
        "name": name, "key": "timer.clock.strike", "spec": spec, "missed": "one", **more,
    }  # fmt: skip
    return await worker.connection.fetchval("select public.stream_schedule($1, $2)", worker.id, [given])


async def tick(db: Any, after: datetime, reached: datetime, *slots: datetime, spec: str = SPEC) -> Any:
    """Write the ticks of these slots."""
    return await db.fetchval(
        "select public.stream_tick('clock.strike', $1, $2, $3, $4)",
        spec, after, reached, [{"slot": slot.isoformat(), "missed": 0} for slot in slots],
    )  # fmt: skip


def last(answer: Any) -> datetime:
    row = answer["schedules"]["clock.strike"] if "schedules" in answer else answer
    return datetime.fromisoformat(row["last_slot"])


async def ticks(db: Any) -> list[Any]:
    """The values of the ticks, in the order they were written."""
    rows = await db.fetch(
        "select value, agent from consciousness_stream where key = 'timer.clock.strike' order by id"
    )
    assert {row["agent"] for row in rows} <= {"clock"}
    return [row["value"]["slot"] for row in rows]


@pytest.fixture
async def begun(db: Any, worker: Worker) -> datetime:
    """A timer whose last slot is a quarter of an hour ago."""
    await worker.subscribe("clock.strike=timer.clock.strike")
    began = last(await schedule(worker)) - timedelta(minutes=15)
    await db.execute("update runtime.schedules set last_slot = $1", began)
    return began


async def test_of_many_who_ask_at_once_one_writes_the_tick(
    db: Any, worker: Worker, begun: datetime, connect: Connect
) -> None:
    slot = begun + timedelta(minutes=1)
    answers = []

    async def ask() -> None:
        async with connect() as connection:
            answers.append(await tick(connection, begun, slot, slot))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(ask)
    assert await ticks(db) == [slot.isoformat()]
    assert {last(answer) for answer in answers} == {slot}
    assert len(await worker.take()) == 1


async def test_nobody_ticks_ahead_of_time_or_backwards(db: Any, begun: datetime) -> None:
    far = begun + timedelta(hours=1)
    assert last(await tick(db, begun, far, far)) == begun
    assert last(await tick(db, begun, begun - timedelta(minutes=1))) == begun
    assert await ticks(db) == []


async def test_a_slot_is_ticked_once_though_its_schedule_was_removed_and_declared_anew(
    db: Any, worker: Worker, begun: datetime
) -> None:
    slot = begun + timedelta(minutes=1)
    await tick(db, begun, slot, slot)
    await db.execute("delete from runtime.schedules")
    await schedule(worker)
    await db.execute("update runtime.schedules set last_slot = $1", begun)
    await tick(db, begun, slot, slot)
    assert await ticks(db) == [slot.isoformat()]


async def test_a_later_worker_changes_a_schedule_and_the_earlier_one_gives_way(
    db: Any, worker: Worker, begun: datetime
) -> None:
    later = Worker(worker.connection)
    await later.subscribe("clock.strike=timer.clock.strike")
    answer = await schedule(later, spec="every 3600")
    assert answer["schedules"]["clock.strike"]["current"]
    # What the other schedule had missed is not this one's.
    assert last(answer) > begun + timedelta(minutes=14)
    assert not (await schedule(worker))["schedules"]["clock.strike"]["current"]
    slot = begun + timedelta(minutes=1)
    assert not (await tick(db, begun, slot, slot))["current"]
    assert await ticks(db) == []


async def test_the_same_schedule_declared_anew_remembers_what_it_has_missed(
    worker: Worker, begun: datetime
) -> None:
    later = Worker(worker.connection)
    await later.subscribe("clock.strike=timer.clock.strike")
    assert last(await schedule(later)) == begun


async def test_a_handler_that_has_lost_its_timer_ticks_no_more(
    db: Any, worker: Worker, begun: datetime
) -> None:
    await schedule(worker, spec=None)
    assert await db.fetchval("select count(*) from runtime.schedules") == 1
    later = Worker(worker.connection)
    await later.subscribe("clock.strike=timer.clock.strike")
    await schedule(later, spec=None)
    assert await db.fetchval("select count(*) from runtime.schedules") == 0


async def test_a_removed_subscription_takes_its_timer_along(db: Any, worker: Worker, begun: datetime) -> None:
    await db.execute("select public.stream_leave($1)", worker.id)
    await db.fetchval("select public.stream_remove('clock.strike')")
    assert await db.fetchval("select public.stream_schedules()") == []


async def test_an_unknown_worker_declares_nothing_and_is_told(db: Any) -> None:
    answer = await schedule(Worker(db, id=uuid4()))
    assert (answer["known"], answer["schedules"]) == (False, {})


async def test_timers_are_listed_with_who_serves_them(db: Any, begun: datetime) -> None:
    (found,) = await db.fetchval("select public.stream_schedules()")
    assert (found["name"], found["key"], found["spec"], found["missed"], found["workers"], found["paused"]) == (
        "clock.strike", "timer.clock.strike", SPEC, "one", 1, False,
    )  # fmt: skip


@pytest.mark.parametrize("call", ["schedule", "tick"])
async def test_an_agent_under_its_own_identity_keeps_its_own_timers_only(
    db: Any, worker: Worker, begun: datetime, call: str
) -> None:
    claims = json.dumps({"role": "agent", "agent": "thief"})
    for connection in (db, worker.connection):
        await connection.execute("select set_config('request.jwt.claims', $1, false)", claims)
    asked = schedule(worker) if call == "schedule" else tick(db, begun, begun + timedelta(minutes=1))
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="thief"):
        await asked


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=365)])
async def test_l9_a_timer_goes_on_when_the_clock_is_set_back(
    db: Any, worker: Worker, begun: datetime, ahead: timedelta
) -> None:
    ticked = begun + timedelta(minutes=5)
    await tick(db, begun, ticked, ticked)
    await db.execute("update runtime.schedules set last_slot = $1", begun + ahead)
    now = await db.fetchval("select clock_timestamp()")
    went_on = last(await schedule(worker))
    assert now <= went_on <= await db.fetchval("select clock_timestamp()")
    # A slot that has ticked by the old clock does not tick again, the others do.
    reached = went_on + timedelta(microseconds=1)
    answer = await tick(db, went_on, reached, ticked, ticked + timedelta(minutes=1))
    assert last(answer) == reached
    assert await ticks(db) == [ticked.isoformat(), (ticked + timedelta(minutes=1)).isoformat()]
