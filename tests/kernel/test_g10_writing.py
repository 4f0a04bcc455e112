"""G10: delay, expiry, priority and dedup_key mean the same in what is sent, emitted, and inserted by plain SQL."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.kernel.driver import Worker, advance, insert, send

pytestmark = pytest.mark.anyio

Write = Callable[..., Awaitable[None]]


@pytest.fixture(params=["send", "emit", "insert"])
async def write(request: pytest.FixtureRequest, db: Any, worker: Worker) -> Write:
    """Writes one message under `task.output`, in one of the three ways."""
    await worker.subscribe("a.one=task.output", "b.emits=start")

    async def by_send(value: str, **options: Any) -> None:
        await send(db, {"key": "task.output", "value": value, **options})

    async def by_emit(value: str, **options: Any) -> None:
        await send(db, ("start", value))
        (start,) = (await worker.exchange(want={"b.emits": 1}, due=True)).taken
        emit = {"key": "task.output", "value": value, **options}
        assert (await worker.finish(start, emits=[emit])).refused == set()

    async def by_insert(
        value: str, *, delay: float | None = None, expires_in: float | None = None, **columns: Any
    ) -> None:
        now = await db.fetchval("select clock_timestamp()")
        if delay is not None:
            columns["deliver_at"] = now + timedelta(seconds=delay)
        if expires_in is not None:
            columns["expires_at"] = now + timedelta(seconds=expires_in)
        await insert(db, "task.output", value, **columns)

    ways: dict[str, Write] = {"send": by_send, "emit": by_emit, "insert": by_insert}
    return ways[request.param]


async def taken(worker: Worker) -> list[str]:
    """The values that are due, in the order they come."""
    looked = await worker.exchange(want={"a.one": 10}, due=True, lease=3600)
    return [each.value for each in looked.taken]


async def test_g10_a_delayed_message_is_delivered_when_its_time_has_come(
    write: Write, db: Any, worker: Worker
) -> None:
    await write("later", delay=600)
    await write("now")
    assert await taken(worker) == ["now"]
    await advance(db, 599)
    assert await taken(worker) == []
    await advance(db, 2)
    assert await taken(worker) == ["later"]


async def test_g10_an_expired_message_is_counted_and_not_delivered(
    write: Write, db: Any, worker: Worker
) -> None:
    await write("stale", expires_in=30)
    await write("fresh", expires_in=300)
    await advance(db, 31)
    assert await taken(worker) == ["fresh"]
    assert await db.fetchval("select expired from runtime.subscriptions where name = 'a.one'") == 1


async def test_g10_an_urgent_message_passes_the_others(write: Write, worker: Worker) -> None:
    for value, priority in (("whenever", -1), ("usual", 0), ("urgent", 1)):
        await write(value, priority=priority)
    assert await taken(worker) == ["urgent", "usual", "whenever"]


async def test_g10_a_message_is_stored_once_under_its_dedup_key(
    write: Write, worker: Worker, request: pytest.FixtureRequest
) -> None:
    await write("first", dedup_key="x")
    if "insert" in request.node.name:
        with pytest.raises(asyncpg.UniqueViolationError, match="stream_send"):
            await write("again", dedup_key="x")
    else:
        await write("again", dedup_key="x")
    await write("other", dedup_key="y")
    assert await taken(worker) == ["first", "other"]
