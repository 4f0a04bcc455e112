"""What is due, for whoever wakes agents that sleep?"""

from typing import Any

import pytest

from tests.kernel.driver import Worker, send

pytestmark = pytest.mark.anyio


async def due(db: Any, *names: str) -> tuple[int, float | None]:
    """How many deliveries are due, and in how many seconds the next one comes due."""
    answer = await db.fetchval("select stream_due($1)", list(names))
    return answer["due"], answer["next_due_seconds"]


async def test_what_is_due_now_is_counted_and_what_comes_next_is_told(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output", "b.other=task.other")
    assert await due(db, "a.one", "b.other", "c.nobody") == (0, None)
    await send(db, ("task.output", 1), ("task.output", 2), ("task.other", 3))
    await send(db, {"key": "task.output", "value": 4, "delay": 100})
    count, seconds = await due(db, "a.one")
    assert (count, 90 < (seconds or 0) <= 100) == (2, True)
    assert (await due(db, "a.one", "b.other"))[0] == 3
    assert await due(db) == (0, None)

    # What another holds is not due before its lease ends.
    (taken,) = (await worker.exchange(want={"a.one": 1})).taken
    count, seconds = await due(db, "a.one")
    assert (count, 0 < (seconds or 0) <= 30) == (1, True)
    await db.execute("update runtime.deliveries set visible_at = clock_timestamp() where lease is not null")
    assert (await due(db, "a.one"))[0] == 2
    await worker.exchange(done=[taken.report()])
    assert (await due(db, "a.one"))[0] == 1


async def test_what_nobody_may_take_now_is_not_due(db: Any, worker: Worker) -> None:
    row = {"name": "b.row", "patterns": ["row.task"], "ordered": True}
    await worker.subscribe("a.one=task.output", row)
    await send(db, ("task.output", 1), ("row.task", 1), ("row.task", 2), ("row.task", 3))
    await db.fetchval("select stream_pause('a.one')")
    assert await due(db, "a.one") == (0, None)
    await db.fetchval("select stream_resume('a.one')")
    assert await due(db, "a.one") == (1, None)
    # Behind the head that runs, the others of its key are parked.
    await worker.exchange(want={"b.row": 3})
    count, seconds = await due(db, "b.row")
    assert (count, seconds is not None) == (0, True)
