"""Cancelling: what waits ends at once; what runs ends as asked, whatever becomes of its worker."""

from typing import Any

import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, advance, insert
from tests.kernel.schedule import started, transaction, until_waiting
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


async def cancel(db: Any, message: int, subscription: str | None = None, outcome: str = "dead") -> Any:
    return await db.fetchval("select public.stream_cancel($1, $2, $3)", message, subscription, outcome)


def states(answer: Any) -> dict[str, str]:
    return {each["subscription"]: each["state"] for each in answer["deliveries"]}


async def runs(db: Any) -> list[str]:
    return [row["outcome"] for row in await db.fetch("select outcome from runtime.runs order by ended_at")]


async def letters(db: Any) -> list[tuple[str, str]]:
    rows = await db.fetch("select reason, error from runtime.dead_letters order by id")
    return [(row["reason"], row["error"]) for row in rows]


async def left(db: Any) -> int:
    return int(await db.fetchval("select count(*) from runtime.deliveries"))


async def is_processed(db: Any, message: int) -> bool:
    return bool(await db.fetchval("select processed from consciousness_stream where id = $1", message))


CANCELLED = ("cancelled", "cancelled by an operator")


@pytest.mark.parametrize("outcome", ["dead", "done"])
@pytest.mark.parametrize("waiting", ["fresh", "retrying", "abandoned"])
async def test_what_waits_ends_at_once_as_asked(db: Any, worker: Worker, waiting: str, outcome: str) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    if waiting != "fresh":
        (taken,) = await worker.take()
        if waiting == "retrying":
            await worker.fail(taken, delay=60)
        else:
            await advance(db, 31)
    answer = await cancel(db, message, outcome=outcome)
    assert (answer["known"], states(answer)) == (True, {"a.one": "ended"})
    assert await left(db) == 0
    assert await is_processed(db, message)
    assert await letters(db) == ([CANCELLED] if outcome == "dead" else [])
    assert (await runs(db))[-1] == "cancelled"
    assert await worker.take() == []


async def test_one_of_several_subscriptions_is_cancelled_alone(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output", "b.two=task.output")
    message = await insert(db, "task.output", 1)
    assert states(await cancel(db, message, "b.two", "done")) == {"b.two": "ended"}
    assert not await is_processed(db, message)
    assert [taken.subscription for taken in await worker.take()] == [worker.numbers["a.one"]]
    with pytest.raises(asyncpg.PostgresError, match=r"there is no subscription 'x\.y'"):
        await cancel(db, message, "x.y")
    with pytest.raises(asyncpg.PostgresError, match="outcome must be dead or done"):
        await cancel(db, message, outcome="gone")


async def test_of_what_is_not_there_nothing_ends(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    await worker.finish(*await worker.take())
    assert await cancel(db, message) == {"message": message, "known": True, "deliveries": []}
    assert await cancel(db, 10**6) == {"message": 10**6, "known": False, "deliveries": []}


@pytest.mark.parametrize("outcome", ["dead", "done"])
@pytest.mark.parametrize("end", ["cancelled", "failed", "later", "released", "dead"])
async def test_what_runs_is_told_to_its_worker_and_ends_as_asked_however_its_attempt_ends(
    db: Any, worker: Worker, end: str, outcome: str
) -> None:
    await worker.subscribe("a.one=task.*")
    message, other = await insert(db, "task.one", 1), await insert(db, "task.two", 2)
    taken, beside = await worker.take()
    assert states(await cancel(db, message, outcome=outcome)) == {"a.one": "told"}
    place = [message, worker.numbers["a.one"]]
    # Told until it has ended: an answer can be lost.
    for _ in range(2):
        assert (await worker.exchange(renew=[taken.report()])).more["cancelled"] == [place]
    await worker.fail(taken, outcome=end)
    assert [row["message_id"] for row in await db.fetch("select * from runtime.deliveries")] == [other]
    assert await letters(db) == ([CANCELLED] if outcome == "dead" else [])
    assert await runs(db) == ["cancelled"]
    assert "cancelled" not in (await worker.exchange(renew=[beside.report()])).more
    # The neighbour fails as ever.
    await worker.fail(beside)
    assert await left(db) == 1


async def test_what_was_done_before_its_worker_heard_of_it_is_done(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    (taken,) = await worker.take()
    await cancel(db, message)
    answer = await worker.finish(taken, emits=[{"key": "task.result", "value": 2}])
    assert answer.refused == set()
    assert await db.fetchval("select count(*) from consciousness_stream where key = 'task.result'") == 1
    assert await letters(db) == []
    # The wish was for that attempt: delivered again, the message is nobody's to end.
    await db.fetchval("select public.stream_replay('a.one', ids => $1)", [message])
    (again,) = await worker.take()
    await worker.fail(again)
    assert await left(db) == 1
    assert (await worker.exchange()).more.get("cancelled", []) == []
    assert await db.fetchval("select count(*) from runtime.cancels") == 0


async def test_a_wish_is_for_one_lease_and_means_nothing_under_another(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    (taken,) = await worker.take()
    await cancel(db, message)
    # Nobody tells it any more, so that the wish is left when the message is done.
    await db.execute("delete from runtime.workers")
    await worker.finish(taken)
    assert await db.fetchval("select count(*) from runtime.cancels") == 1
    await db.fetchval("select public.stream_replay('a.one', ids => $1)", [message])
    (again,) = await worker.take()
    await worker.fail(again)
    assert await left(db) == 1
    assert await letters(db) == []


@pytest.mark.parametrize("outcome", ["dead", "done"])
async def test_a_worker_that_dies_leaves_the_wish_in_the_table(db: Any, worker: Worker, outcome: str) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    await worker.take()
    await cancel(db, message, outcome=outcome)
    await advance(db, 31)
    successor = Worker(db)
    await successor.subscribe("a.one=task.output")
    assert await successor.take() == []
    assert await left(db) == 0
    assert await letters(db) == ([CANCELLED] if outcome == "dead" else [])
    assert await runs(db) == ["crashed", "cancelled"]
    assert await is_processed(db, message)


async def test_without_the_wish_in_the_table_a_dead_workers_delivery_would_be_handled_again(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    await worker.take()
    await switch_off(
        db, "runtime.settle_crashes", "if exists (select from runtime.cancels) then", "if false then"
    )
    await cancel(db, message)
    await advance(db, 31)
    assert [taken.id for taken in await worker.take()] == [message]


async def test_k9_a_cancelled_head_lets_its_key_go_and_wakes_somebody(
    db: Any, connect: Connect, worker: Worker
) -> None:
    await worker.subscribe(
        {"name": "a.one", "patterns": ["task.output"], "ordered": True}, announce=["notify"]
    )
    first, second, third = [await insert(db, "task.output", n) for n in range(3)]
    (head,) = await worker.take()
    assert head.id == first
    await cancel(db, first, outcome="done")
    assert await worker.take() == []
    await worker.fail(head, outcome="cancelled")
    (taken,) = await worker.take()
    assert taken.id == second
    await worker.fail(taken, delay=60)
    await worker.fall_asleep()
    heard: list[str] = []
    async with connect() as ear:
        await ear.add_listener(worker.channel, lambda *given: heard.append(given[-1]))
        await cancel(db, second)
        await ear.fetchval("select 1")
    assert heard == ["wake"]
    assert [each.id for each in await worker.take()] == [third]


async def test_its_worker_is_told_at_once_though_it_is_awake(
    db: Any, connect: Connect, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output", announce=["notify"])
    message = await insert(db, "task.output", 1)
    await worker.take()
    heard: list[str] = []
    async with connect() as ear:
        await ear.add_listener(worker.channel, lambda *given: heard.append(given[-1]))
        await cancel(db, message)
        await ear.fetchval("select 1")
    assert heard == ["cancel"]


async def test_a_wish_waits_for_the_report_under_way_and_finds_it_as_that_has_left_it(
    db: Any, connect: Connect, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    (taken,) = await worker.take()
    async with connect() as operator, transaction(worker.connection) as report:
        await worker.fail(taken, delay=60)
        async with started(lambda: cancel(operator, message)) as asked:
            await until_waiting(db, operator)
            await report.commit()
            assert states(await asked.outcome()) == {"a.one": "ended"}
    assert await left(db) == 0
    assert await letters(db) == [CANCELLED]


async def test_a_report_waits_for_the_wish_under_way_and_obeys_it(
    db: Any, connect: Connect, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    message = await insert(db, "task.output", 1)
    (taken,) = await worker.take()
    async with connect() as operator, transaction(operator) as wish:
        assert states(await cancel(operator, message)) == {"a.one": "told"}
        async with started(lambda: worker.fail(taken)) as report:
            await until_waiting(db, worker.connection)
            await wish.commit()
            await report.outcome()
    assert await left(db) == 0
    assert await letters(db) == [CANCELLED]


async def test_of_two_wishes_at_once_none_is_forgotten(db: Any, connect: Connect, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    one, two = await insert(db, "task.output", 1), await insert(db, "task.output", 2)
    first, second = await worker.take()
    await cancel(db, one)
    async with connect() as operator, transaction(operator) as wish:
        await cancel(operator, two)
        # It has nothing more to end as far as it can see, and is about to forget that it was told.
        async with started(lambda: worker.fail(first, outcome="cancelled")) as report:
            await until_waiting(db, worker.connection)
            await wish.commit()
            await report.outcome()
    assert (await worker.exchange()).more["cancelled"] == [[two, second.subscription]]
