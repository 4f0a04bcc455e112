"""K14: a declaration gives way only to a later started worker's, and takes nothing back that was delivered."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, advance, insert, send
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

OLD = {"name": "a.one", "patterns": ["task.output"], "max_attempts": 2}
NEW = {"name": "a.one", "patterns": ["site.output"], "max_attempts": 7}


@pytest.fixture
async def later(connect: Connect, worker: Worker) -> AsyncIterator[Worker]:
    """A worker that starts after `worker`."""
    await worker.subscribe()
    async with connect() as connection:
        other = Worker(connection)
        await other.subscribe()
        yield other


async def declared(db: Any) -> tuple[list[str], int]:
    """The patterns and the attempts of the only subscription, as both of their tables have them."""
    row = await db.fetchrow("select patterns, max_attempts from runtime.subscriptions")
    looked_up = await db.fetchval("select array_agg(pattern::text order by pattern) from runtime.patterns")
    assert looked_up == row["patterns"]
    return looked_up, row["max_attempts"]


async def test_k14_a_later_started_worker_replaces_a_declaration_and_an_older_one_does_not(
    db: Any, worker: Worker, later: Worker
) -> None:
    numbers = await worker.subscribe(OLD)
    assert await declared(db) == (["task.output"], 2)
    assert await later.subscribe(NEW) == numbers
    assert await declared(db) == (["site.output"], 7)
    # The old process reconnects and says again what it knows.
    assert await worker.subscribe(OLD) == numbers
    assert await declared(db) == (["site.output"], 7)


async def test_k14_what_a_handler_offers_as_a_tool_is_that_of_the_later_declaration(
    db: Any, worker: Worker, later: Worker
) -> None:
    tool = {
        "name": "one",
        "key": "task.output",
        "description": "One.",
        "input": None,
        "output": {"type": "integer"},
    }
    await worker.subscribe({**OLD, "tool": tool})
    [offered] = await db.fetchval("select stream_tools()")
    assert (offered["subscription"], offered["tool"], offered["workers"]) == ("a.one", tool, 1)
    await later.subscribe(OLD)
    assert await db.fetchval("select stream_tools()") == []
    await worker.subscribe({**OLD, "tool": tool})
    assert await db.fetchval("select stream_tools()") == []


async def test_k14_without_it_an_old_process_takes_the_declaration_back(
    db: Any, worker: Worker, later: Worker
) -> None:
    await switch_off(db, "stream_subscribe", "and s.declared_at < me.started_at", "")
    await later.subscribe(NEW)
    await worker.subscribe(OLD)
    assert await declared(db) == (["task.output"], 2)


async def test_k14_a_declaration_confirmed_by_a_later_worker_is_that_worker_s(
    db: Any, worker: Worker, later: Worker, connect: Connect
) -> None:
    await worker.subscribe(NEW)
    async with connect() as connection:
        latest = Worker(connection)
        await latest.subscribe(NEW)
    # Started between the two, it comes late with what was rolled back.
    await later.subscribe(OLD)
    assert await declared(db) == (["site.output"], 7)


async def test_k14_a_shrunk_pattern_leaves_deliveries_that_exist(
    db: Any, worker: Worker, later: Worker
) -> None:
    await worker.subscribe({**OLD, "patterns": ["site.output", "task.output"]})
    first = await insert(db, "task.output", 1)
    await later.subscribe(NEW)
    second = await insert(db, "site.output", 2)
    await insert(db, "task.output", 3)
    assert [each.id for each in await later.take()] == [first, second]


async def test_k14_limits_hold_for_what_is_under_way(db: Any, worker: Worker, later: Worker) -> None:
    await worker.subscribe(OLD)
    await insert(db, "task.output", 1)
    await worker.fail(*await worker.take())
    await later.subscribe({**OLD, "max_attempts": 3})
    await worker.fail(*await worker.take())
    assert await db.fetchval("select attempts from runtime.deliveries") == 2
    await worker.fail(*await worker.take())
    assert await db.fetchval("select count(*) from runtime.dead_letters") == 1


async def test_k14_a_replay_of_what_is_pending_changes_nothing(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    ended, leased, retrying, delayed, fresh = await send(db, *(("task.output", n) for n in range(5)))
    taken = {each.id: each for each in await worker.take(4)}
    await worker.finish(taken[ended])
    await worker.fail(taken[retrying], delay=100)
    await worker.fail(taken[delayed], outcome="later", delay=200)
    pending = "select to_jsonb(d) from runtime.deliveries d where message_id <> $1 order by message_id"
    before = await db.fetch(pending, ended)
    assert len(before) == 4
    answer = await db.fetchval("select stream_replay('a.one')")
    assert answer == {"subscription": "a.one", "matching": 5, "replayed": 1}
    assert await db.fetch(pending, ended) == before
    assert (await worker.finish(taken[leased])).refused == set()
    await advance(db, 201)
    assert sorted(each.id for each in await worker.take()) == [ended, retrying, delayed, fresh]


async def warned(worker: Worker) -> list[str]:
    """What the kernel tells a worker with its next heartbeat."""
    return list((await worker.exchange(beat=True)).more.get("warnings") or ())


async def test_d4_two_that_declare_one_subscription_otherwise_are_both_warned(
    db: Any, worker: Worker, later: Worker
) -> None:
    async def subscribe(who: Worker, declaration: dict[str, Any]) -> list[str]:
        answer = await who.connection.fetchval(
            "select stream_subscribe($1, $2)",
            {"id": str(who.id), "name": who.id.hex},
            [{"agent": "a", **declaration}],
        )
        return list(answer["warnings"])

    assert await subscribe(worker, OLD) == []
    assert await warned(worker) == []
    (said,) = await subscribe(later, NEW)
    assert all(
        each in said for each in ("a.one", "task.output", "site.output", worker.id.hex[:6], "another name")
    )
    assert await warned(worker) == [said]
    assert await warned(later) == []
    assert (await db.fetchval("select stream_stats()"))["warnings"] == [said]
    # The older one reconnects: what it declares is not used, and that is said as well.
    assert await subscribe(worker, OLD) == [said]
    # It ends, or is not seen any more: then it was a deploy.
    await db.execute(
        "update runtime.workers set seen_at = seen_at - interval '1 hour' where id = $1", worker.id
    )
    assert (await db.fetchval("select stream_stats()"))["warnings"] == []
    assert await subscribe(later, NEW) == []


async def test_d4_patterns_in_another_order_are_the_same(db: Any, worker: Worker, later: Worker) -> None:
    await worker.subscribe({**OLD, "patterns": ["a.b", "a.c"]})
    await later.subscribe({**OLD, "patterns": ["a.c", "a.b", "a.c"]})
    assert await warned(worker) == []


@pytest.mark.parametrize("hours", [1, 24])
async def test_l13_a_declaration_after_the_clock_went_back_takes_effect(
    db: Any, worker: Worker, connect: Connect, hours: int
) -> None:
    await worker.subscribe(OLD)
    ahead = f"+ interval '{hours} hours'"
    await db.execute(f"update runtime.subscriptions set declared_at = declared_at {ahead}")
    await db.execute(f"update runtime.workers set started_at = started_at {ahead}, seen_at = seen_at {ahead}")
    async with connect() as connection:
        newcomer = Worker(connection)
        await newcomer.subscribe(NEW)
        assert await declared(db) == (["site.output"], 7)
        # The old one is still the older one when it comes back.
        await worker.subscribe(OLD)
        assert await declared(db) == (["site.output"], 7)


async def test_l10_a_start_uses_up_no_numbers(db: Any, worker: Worker, connect: Connect) -> None:
    names = [f"a.n{n}=task.output" for n in range(5)]
    numbers = sorted((await worker.subscribe(*names)).values())
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    assert numbers[-1] <= 1_000_000_100
    for _restart in range(3):
        async with connect() as connection:
            again = Worker(connection)
            assert sorted((await again.subscribe(*names)).values()) == numbers
    assert (await worker.subscribe("a.new=task.output"))["a.new"] == numbers[-1] + 1
