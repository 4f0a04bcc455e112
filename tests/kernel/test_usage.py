"""What does it cost? Usage rides with reports, adds up by day and model, and holds what has spent its budget."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, advance, send
from tests.kernel.schedule import transaction

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("within_an_hour")]

BUDGET = {"name": "a.one", "patterns": ["task.output"], "budget": 1, "budget_period": "day"}


def told(cost: float = 0.25, model: str | None = "m", **more: Any) -> dict[str, Any]:
    return {"tokens_in": 7, "tokens_out": 2, "cost": cost, "model": model, **more}


async def write(db: Any, count: int) -> list[int]:
    return await send(db, *[("task.output", n) for n in range(count)])


async def usage(db: Any) -> list[tuple[Any, ...]]:
    """What is kept of today: handler, model, calls, tokens in and out, cost."""
    rows = await db.fetchval("select stream_usage(1)")
    return [
        (each["handler"], each["model"], each["calls"], each["tokens_in"], each["tokens_out"], each["cost"])
        for each in rows
    ]


async def state(db: Any, name: str = "a.one") -> dict[str, Any]:
    stats = await db.fetchval("select stream_stats()")
    return next(each for each in stats["subscriptions"] if each["name"] == name)


async def pass_time(db: Any) -> None:
    """Let the periods of budgets and the words of providers end."""
    await db.execute(
        "update runtime.holds set began_at = began_at - interval '32 days', "
        "spent_until = spent_until - interval '32 days', refused_until = refused_until - interval '1 hour'"
    )


@pytest.fixture
async def other(connect: Connect, worker: Worker) -> Any:
    """A second worker."""
    async with connect() as connection:
        yield Worker(connection)


async def test_usage_adds_up_by_day_and_model_however_an_attempt_ends(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output", "b.two=task.output")
    await write(db, 4)
    first, late, failed, released, *rest = sorted(await worker.take(), key=lambda each: each.subscription)
    await worker.exchange(
        done=[first.report(usage=told()), rest[0].report(usage=told(0.1, None)), rest[1].report()],
        failed=[
            failed.report(outcome="failed", delay=0, usage=told(0.001)),
            released.report(outcome="released", usage=told(0.0001)),
        ],
    )
    by_model = [told(0.5, "big"), told(0.125, "small"), told(0.125, "small")]
    await worker.finish(late, usage={**told(0.75, "big, small"), "by_model": by_model})
    # Too late, and paid all the same; what makes no sense counts nothing.
    answer = await worker.finish(late, usage=told(1))
    assert len(answer.refused) == 1
    await worker.finish(rest[2], usage={"tokens_in": "many", "cost": [1], "tokens_out": -4})
    await worker.finish(rest[3], usage=[4])
    assert await usage(db) == [
        ("a.one", "big", 1, 7, 2, 0.5),
        ("a.one", "m", 4, 28, 8, 1.2511),
        ("a.one", "small", 2, 14, 4, 0.25),
        ("b.two", "", 2, 7, 2, 0.1),
    ]
    assert (await state(db))["usage_today"] == {"calls": 7, "tokens_in": 49, "tokens_out": 14, "cost": 2.0011}
    assert (await state(db))["held"] is None


async def test_k2_usage_of_an_exchange_that_is_repeated_counts_once(db: Any, worker: Worker) -> None:
    await worker.subscribe(BUDGET)
    await write(db, 1)
    (taken,) = await worker.take()
    await worker.exchange(done=[taken.report(usage=told())])
    for _ in range(2):
        await worker.exchange(done=[taken.report(usage=told())], n=worker.n)
    assert await usage(db) == [("a.one", "m", 1, 7, 2, 0.25)]


async def test_workers_that_report_at_once_do_not_wait_for_each_other(
    db: Any, worker: Worker, other: Worker
) -> None:
    other.id = worker.id.__class__(int=worker.id.int ^ 1)
    while await db.fetchval(
        "select hashtext($1::text) % 8 = hashtext($2::text) % 8", str(worker.id), str(other.id)
    ):
        other.id = worker.id.__class__(int=other.id.int + 1)
    await worker.subscribe("a.one=task.output")
    await other.subscribe("a.one=task.output")
    await write(db, 2)
    (first,), (second,) = await worker.take(1), await other.take(1)
    async with transaction(worker.connection):
        await worker.finish(first, usage=told())
        await other.finish(second, usage=told())
    assert await usage(db) == [("a.one", "m", 2, 14, 4, 0.5)]


async def test_sums_outlive_their_messages_and_go_after_400_days(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    await write(db, 1)
    await worker.finish(*await worker.take(), usage=told())
    await db.execute(
        "insert into runtime.usage select u.day - d, u.handler, u.model, u.part, 1, 1, 1, 1 "
        "from runtime.usage u, unnest(array[399, 401]) d"
    )
    await db.fetchval("select stream_prune(0)")
    await db.fetchval("select stream_maintain($1)", worker.id)
    assert await db.fetchval("select count(*) from runtime.usage") == 2
    assert await usage(db) == [("a.one", "m", 1, 7, 2, 0.25)]
    assert len(await db.fetchval("select stream_usage(400)")) == 2


@pytest.mark.parametrize("period", ["hour", "day", "month"])
async def test_a_budget_that_is_spent_holds_all_workers_until_its_period_ends(
    db: Any, worker: Worker, other: Worker, period: str
) -> None:
    budget = {**BUDGET, "budget_period": period}
    await worker.subscribe(budget, "a.free=task.output")
    await other.subscribe(budget, "a.free=task.output")
    await write(db, 5)
    first, second = (await worker.exchange(want={"a.one": 2})).taken
    answer = await worker.exchange(done=[first.report(usage=told(0.5))], want={"a.one": 1})
    assert len(answer.taken) == 1
    # What was begun ends and counts; from then on nobody takes more, in this very exchange already.
    answer = await worker.exchange(
        failed=[second.report(outcome="failed", delay=0, usage=told(0.5))], want=9, due=True
    )
    assert {each.subscription for each in answer.taken} == {worker.numbers["a.free"]}
    assert answer.more["full"] == []
    began, ends = await db.fetchrow("select * from runtime.period_of($1, clock_timestamp())", period)
    assert 0 < answer.more["limited"] <= (ends - began).total_seconds()
    assert (await other.exchange(want={"a.one": 9}, due=True)).taken == []
    found = await state(db)
    assert found["budget"] == {"cost": 1, "period": period, "per": None, "spent": 1, "held": []}
    assert found["held"]["by"] == "budget"
    assert datetime.fromisoformat(found["held"]["until"]) == ends
    due = await db.fetchval("select stream_due('{a.one}')")
    assert due["due"] == 0
    assert due["next_due_seconds"] == pytest.approx(found["held"]["seconds"], abs=60)
    await pass_time(db)
    found = await state(db)
    assert (found["held"], found["budget"]["spent"]) == (None, 0)
    assert len((await other.exchange(want={"a.one": 9}, due=True)).taken) == 3
    # Counted anew.
    await worker.finish(answer.taken[0], usage=told(5))
    await worker.exchange(done=[{**first.report(), "usage": told(0.25)}])
    assert (await state(db))["budget"]["spent"] == 0.25


async def test_a_budget_for_each_prefix_holds_the_messages_of_those_that_have_spent_it(
    db: Any, connect: Connect, worker: Worker, other: Worker
) -> None:
    tenants = {"name": "a.one", "patterns": ["order.>"], "budget": 1, "budget_period": "day", "budget_per": 2}
    await worker.subscribe(tenants)
    await other.subscribe(tenants)
    await send(db, *[(f"order.{who}.placed", n) for who in ("acme", "bolt") for n in range(3)])
    acme, bolt = [each for each in await worker.take() if each.value == 0]
    await worker.finish(bolt, usage=told(0.4))
    # The leases of the others run out.
    await advance(db, 31)
    answer = await worker.exchange(done=[acme.report(usage=told(0.7))], want=9, due=True)
    assert {each.key for each in answer.taken} == {"order.acme.placed", "order.bolt.placed"}
    spent, *_ = [each for each in answer.taken if each.key == "order.acme.placed"]
    rest = [each.report(outcome="failed", delay=0) for each in answer.taken if each is not spent]
    # Found spent within the very exchange that reports it, and of each prefix by whoever takes.
    answer = await worker.exchange(failed=rest, done=[spent.report(usage=told(0.3))], want=9, due=True)
    assert {each.key for each in answer.taken} == {"order.bolt.placed"}
    assert answer.more["look_again"]
    assert await other.take() == []
    assert await db.fetchval("select count(*) from runtime.deliveries where lease is null") == 1
    found = await state(db)
    assert (found["held"], found["scheduled"]) == (None, 1)
    assert (found["budget"]["per"], found["budget"]["spent"]) == (2, 1.4)
    assert [(each["prefix"], each["spent"]) for each in found["budget"]["held"]] == [("order.acme", 1)]
    # A fresh one is put off as it is taken, and so is one of a longer key; another prefix goes on.
    await send(db, ("order.acme.placed.again", 9), ("order.cask", 9))
    assert [each.key for each in (await other.exchange(want=9)).taken] == ["order.cask"]
    assert 0 < (await other.exchange(want=9, due=True)).more["next_due"] <= 86_400
    await advance(db, 86_400)
    await db.execute(
        "update runtime.spent_prefixes set began_at = began_at - interval '1 day', "
        "spent_until = spent_until - interval '1 day'"
    )
    assert {"order.acme.placed", "order.acme.placed.again"} <= {each.key for each in await other.take()}
    assert (await state(db))["budget"]["held"] == []
    await db.execute("update runtime.spent_prefixes set began_at = began_at - interval '33 days'")
    await db.fetchval("select stream_maintain($1)", worker.id)
    assert await db.fetchval("select count(*) from runtime.spent_prefixes") == 0


async def test_a_declaration_of_another_budget_holds_at_once_and_wakes_who_sleeps(
    db: Any, connect: Connect, worker: Worker, other: Worker
) -> None:
    await worker.subscribe("a.one=task.output", announce=["notify"])
    await write(db, 3)
    await worker.finish((await worker.take(1))[0], usage=told(0.9))
    later, last = Worker(db), Worker(db)
    # What the day has cost before counts.
    await other.subscribe({**BUDGET, "budget": 0.5})
    assert (await state(db))["budget"] == {
        "cost": 0.5,
        "period": "day",
        "per": None,
        "spent": 0.9,
        "held": [],
    }
    assert await other.take() == []
    await worker.fall_asleep()
    heard: list[str] = []
    async with connect() as ear:
        await ear.add_listener(worker.channel, lambda *given: heard.append(given[-1]))
        await later.subscribe(BUDGET)
        await ear.fetchval("select 1")
    assert heard
    assert set(heard) == {"wake"}
    taken = await worker.take(1)
    await worker.finish(*taken, usage=told(0.1))
    assert await worker.take() == []
    await last.subscribe("a.one=task.output")
    assert len(await worker.take()) == 1
    assert await db.fetchval("select count(*) from runtime.holds") == 0


async def test_a_provider_that_refuses_holds_its_handler_for_all_workers(
    db: Any, worker: Worker, other: Worker
) -> None:
    await worker.subscribe("a.one=task.output", "a.free=task.output")
    await other.subscribe("a.one=task.output", "a.free=task.output")
    await write(db, 3)
    first, second = (await worker.exchange(want={"a.one": 2})).taken
    answer = await worker.exchange(
        failed=[first.report(outcome="later", delay=40, hold=40), second.report(outcome="later", delay=9, hold=9)],
        want={"a.one": 9}, due=True,
    )  # fmt: skip
    assert answer.taken == []
    assert 39 < answer.more["limited"] <= 40
    assert (await state(db))["held"]["by"] == "provider"
    assert (await other.exchange(want={"a.one": 9}, due=True)).taken == []
    assert len((await other.exchange(want={"a.free": 9}, due=True)).taken) == 3
    await pass_time(db)
    (third,) = (await other.exchange(want={"a.one": 1})).taken
    assert await db.fetchval("select stream_maintain($1)", worker.id)
    assert await db.fetchval("select count(*) from runtime.holds") == 0
    # A provider that asks for a day gets an hour.
    await other.fail(third, outcome="later", delay=86_400, hold=86_400)
    until = datetime.fromisoformat((await state(db))["held"]["until"])
    assert timedelta(minutes=59) < until - datetime.now(UTC) < timedelta(minutes=61)
