"""What an operator does: pause and resume, replay, prune, look; and what is there to be read."""

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.kernel.driver import Worker, advance, send
from tests.kernel.schedule import transaction

pytestmark = pytest.mark.anyio


async def test_a_paused_subscription_gathers_and_a_resumed_one_goes_on(db: Any, worker: Worker) -> None:
    row = {"name": "b.row", "patterns": ["task.output"], "ordered": True}
    await worker.subscribe("a.one=task.output", row, "c.other=task.output")
    await send(db, ("task.output", 1), ("task.output", 2))
    (running,) = (await worker.exchange(want={"a.one": 1})).taken
    for name in ("a.one", "b.row"):
        assert await db.fetchval("select stream_pause($1)", name) == {"subscription": name, "paused": True}
    paused_at = await db.fetchval("select array_agg(paused_at order by name) from runtime.subscriptions")
    await db.fetchval("select stream_pause('a.one')")
    assert (
        await db.fetchval("select array_agg(paused_at order by name) from runtime.subscriptions") == paused_at
    )

    await send(db, {"key": "task.output", "value": 3, "delay": 100})
    answer = await worker.exchange(want=10, due=True)
    assert {each.subscription for each in answer.taken} == {worker.numbers["c.other"]}
    # Nobody sets a timer for what is paused; what runs may end.
    only_paused = {"a.one": 1, "b.row": 1}
    answer = await worker.exchange(want=only_paused, due=True, done=[running.report()])
    assert (answer.ids, answer.refused, answer.more["next_due"]) == ([], set(), None)

    for name in ("a.one", "b.row"):
        assert await db.fetchval("select stream_resume($1)", name) == {"subscription": name, "paused": False}
    answer = await worker.exchange(want=only_paused, due=True)
    assert len(answer.ids) == 2
    assert 90 < answer.more["next_due"] <= 100 or answer.more["next_due"] <= 30


async def test_what_is_not_there_is_said(db: Any) -> None:
    for call in ("pause('a.gone')", "resume('a.gone')", "replay('a.gone')"):
        with pytest.raises(asyncpg.PostgresError, match=r"there is no subscription 'a\.gone'") as caught:
            await db.fetchval(f"select stream_{call}")
        assert caught.value.sqlstate == "22023"
    for call in ("read(max => 0)", "read(max => null)", "read(max => 10001)", "prune(-1)", "prune(null)",
                 "prune(0, max => null)", "prune(0, max => 0)", "read('a*')", "read(null)"):  # fmt: skip
        with pytest.raises(asyncpg.PostgresError) as caught:
            await db.fetchval(f"select stream_{call}")
        assert caught.value.sqlstate == "22023", call


async def replay(db: Any, **options: Any) -> tuple[int, int]:
    """How many messages were meant, and how many deliveries were made."""
    named = "".join(f", {name} => ${place}" for place, name in enumerate(options, start=1))
    answer = await db.fetchval(f"select stream_replay('a.one'{named})", *options.values())
    return answer["matching"], answer["replayed"]


async def test_history_is_replayed_by_time_pattern_and_id(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.>,task.output,news")
    old, ask = await send(db, ("task.output", 1), ("task.ask", 2))
    await advance(db, 100)
    young, news, _ = await send(db, ("task.output", 3), ("news", 4), ("other", 5))
    await worker.finish(*await worker.take())
    since = await db.fetchval("select clock_timestamp()") - timedelta(seconds=50)

    assert await replay(db, dry_run=True) == (4, 0)
    assert await db.fetchval("select count(*) from runtime.deliveries") == 0
    for options, expected in (
        ({"since": since}, [young, news]),
        ({"until": since}, [old, ask]),
        ({"pattern": "task.*"}, [old, ask, young]),
        ({"pattern": "task.ask"}, [ask]),
        ({"ids": [old, news]}, [old, news]),
        ({"ids": [old, news], "since": since}, [news]),
        ({"pattern": "site.>"}, []),
    ):
        assert await replay(db, dry_run=True, **options) == (len(expected), 0)
        assert await replay(db, **options) == (len(expected), len(expected))
        taken = await worker.take()
        assert [each.id for each in taken] == expected, options
        assert await replay(db, **options) == (len(expected), 0)
        await worker.finish(*taken)


async def test_a_replay_of_an_ordered_subscription_keeps_its_order(db: Any, worker: Worker) -> None:
    await worker.subscribe({"name": "a.one", "patterns": ["task.output"], "ordered": True})
    first, second = await send(db, {"key": "task.output", "value": 1, "priority": -1}, ("task.output", 2))
    for expected in (first, second):
        (taken,) = await worker.take()
        assert taken.id == expected
        await worker.finish(taken)
    await replay(db)
    for expected in (first, second):
        (taken,) = await worker.take()
        assert taken.id == expected
        await worker.finish(taken)


async def test_stats_tell_what_waits_and_why(db: Any, worker: Worker) -> None:
    row = {"name": "b.row", "patterns": ["site.output"], "ordered": True}
    await worker.subscribe("a.one=task.output", row)
    await send(db, *(("task.output", n) for n in range(4)), ("site.output", 1), ("site.output", 2))
    dead, retrying = (await worker.exchange(want={"a.one": 2})).taken
    await worker.fail(dead, outcome="dead")
    await worker.fail(retrying, delay=100)
    await worker.exchange(want={"a.one": 1, "b.row": 2})
    await advance(db, 5)
    stats = await db.fetchval("select stream_stats()")
    of = {each["name"]: each for each in stats["subscriptions"]}
    counts = ("waiting", "running", "scheduled", "parked", "dead", "workers", "paused", "settled")
    assert [of["a.one"][each] for each in counts] == [1, 1, 1, 0, 1, 1, False, True]
    assert [of["b.row"][each] for each in counts] == [1, 1, 0, 1, 0, 1, False, True]
    assert 5 <= of["a.one"]["lag_seconds"] < 30
    assert (stats["dead_letters"], stats["last_message"]) == (1, 6)
    assert [(each["id"], each["running"]) for each in stats["workers"]] == [(str(worker.id), 2)]
    assert await db.fetchval("select stream_leave($1)", worker.id) == {"worker": str(worker.id), "left": True}
    assert await db.fetchval("select stream_leave($1)", worker.id) == {
        "worker": str(worker.id),
        "left": False,
    }
    assert (await db.fetchval("select stream_stats()"))["workers"] == []


async def test_what_was_sent_with_a_delay_lags_from_when_it_is_over(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")

    async def lag() -> float | None:
        [told] = (await db.fetchval("select stream_stats()"))["subscriptions"]
        assert told["scheduled"] + told["waiting"] + told["running"]
        return None if told["lag_seconds"] is None else float(told["lag_seconds"])

    await send(db, {"key": "task.output", "value": 1, "delay": 600})
    await advance(db, 60)
    assert await lag() is None
    # It is older than what waits, and hides nothing of it.
    await send(db, ("task.output", 2))
    await advance(db, 100)
    assert 100 <= (await lag() or 0) < 130
    await advance(db, 440 + 50)
    [fresh] = (await worker.exchange(want={"a.one": 1})).taken
    await worker.finish(fresh)
    assert 50 <= (await lag() or 0) < 80
    # Taken, it still waits since then; so does a retry.
    [taken] = await worker.take()
    assert 50 <= (await lag() or 0) < 80
    await worker.fail(taken, delay=100)
    await advance(db, 10)
    assert 60 <= (await lag() or 0) < 100


async def read(db: Any, pattern: str, **options: Any) -> list[int]:
    """The ids of one page."""
    named = "".join(f", {name} => ${place}" for place, name in enumerate(options, start=2))
    rows = await db.fetchval(f"select stream_read($1{named})", pattern, *options.values())
    return [row["id"] for row in rows]


@pytest.mark.parametrize("pattern", ["task.output", "task.*", ">"])
async def test_pages_go_forward_after_an_id_and_back_before_one(db: Any, pattern: str) -> None:
    ids = await send(db, *(("task.output", n) for n in range(7)))
    assert await read(db, pattern, max=3) == ids[4:]
    assert await read(db, pattern, max=3, before=ids[4]) == ids[1:4]
    assert await read(db, pattern, max=3, before=ids[1]) == ids[:1]
    assert await read(db, pattern, max=3, after=0) == ids[:3]
    assert await read(db, pattern, max=3, after=ids[2]) == ids[3:6]
    assert await read(db, pattern, max=3, after=ids[6]) == []
    assert await read(db, pattern, after=ids[1], before=ids[4]) == ids[2:4]


async def test_the_newest_of_each_key_is_found_and_paged(db: Any) -> None:
    for n in range(3):
        await send(
            db, *((f"task.k{key}", n) for key in range(4)), ("task", n), ("task.k0.deep", n), ("tasks.k", n)
        )
    newest = [row["id"] for row in await db.fetch(
        "select max(id) as id from consciousness_stream where key ~ '^task\\.k\\d$' group by key order by 1 desc"
    )]  # fmt: skip
    assert len(newest) == 4
    assert await read(db, "task.*", latest=True) == newest
    assert await read(db, "task.*", latest=True, max=3) == newest[:3]
    assert await read(db, "task.*", latest=True, max=3, before=newest[2]) == newest[3:]
    assert await read(db, "task.k1", latest=True) == [newest[2]]
    assert await read(db, "task.k9", latest=True) == []
    (row,) = await db.fetchval("select stream_read('task.k1', latest => true)")
    assert (row["key"], row["value"], row["processed"]) == ("task.k1", 2, False)


@pytest.mark.parametrize("pattern", ["task.output", "task.*", ">"])
async def test_a_time_is_read_from_its_beginning_to_its_end(db: Any, pattern: str) -> None:
    ids = await send(db, *(("task.output", n) for n in range(6)))
    await db.execute(
        "update consciousness_stream set created_at = '2026-11-22T12:00Z'::timestamptz + (id - $1) * interval '0.4 s'",
        ids[0],
    )
    noon, later = datetime(2026, 11, 22, 12, tzinfo=UTC), datetime(2026, 11, 22, 12, 0, 1, tzinfo=UTC)
    assert await read(db, pattern, since=noon, max=2) == ids[:2]
    assert await read(db, pattern, since=later) == ids[3:]
    assert await read(db, pattern, until=later, max=2) == ids[1:3]
    assert await read(db, pattern, since=later, after=ids[3], until=later + timedelta(days=1)) == ids[4:]
    assert await read(db, pattern, until=noon) == []
    assert await read(db, pattern, latest=True, until=later) == [ids[2]]
    assert await read(db, pattern, latest=True, since=later) == [ids[5]]


async def test_a_correlation_id_is_read_with_the_message_that_gave_it(db: Any) -> None:
    first, other = await send(db, ("task.a", 1), ("task.a", 2))
    own = str(first)
    family = [first, *await send(
        db,
        {"key": "task.b", "correlation_id": own, "parent_id": first},
        # Of the second generation, from outside, and by a handler that was busy with another message.
        {"key": "task.c", "correlation_id": own, "parent_id": first + 2},
        {"key": "task.d", "correlation_id": own},
        {"key": "task.e", "correlation_id": own, "parent_id": other},
    )]  # fmt: skip
    order = await send(
        db, {"key": "task.f", "correlation_id": "an order", "parent_id": first}, {"key": "task.g"}
    )
    assert await read(db, ">", correlation_id=own, after=0) == family
    assert await read(db, ">", correlation_id=own, max=2) == family[-2:]
    assert await read(db, ">", correlation_id=own, after=family[0], max=3) == family[1:4]
    assert await read(db, ">", correlation_id=own, before=family[3], max=2) == family[1:3]
    assert await read(db, "task.b", correlation_id=own) == family[1:2]
    assert await read(db, ">", correlation_id="an order") == order[:1]
    # A message that has a correlation id of its own gives that one to others, and not its number.
    assert await read(db, ">", correlation_id=str(family[1])) == []
    with pytest.raises(asyncpg.InvalidParameterValueError, match="exclude each other"):
        await read(db, ">", correlation_id=own, latest=True)


async def test_dead_letters_are_counted_while_they_are_few_and_reckoned_where_they_are_many(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.few=k", "b.many=k")

    async def bury(name: str, number: int) -> None:
        await db.execute(
            "insert into runtime.dead_letters (message_id, subscription, subscription_name, key, message, reason, "
            "traceback, attempts) select n, $2, $1, 'k', '{}', 'failed', repeat('x', 500), '[]' "
            "from generate_series(1, $3::integer) n",
            name, worker.numbers.get(name, 0), number,
        )  # fmt: skip

    async def told() -> tuple[dict[str, Any], dict[str, Any]]:
        stats = await db.fetchval("select stream_stats()")
        return stats, {each["name"]: each for each in stats["subscriptions"]}

    await bury("a.few", 3)
    await bury("b.many", 2)
    await bury("of.nobody", 1)
    stats, by_name = await told()
    assert (stats["dead_letters"], stats["dead_about"]) == (6, False)
    assert [by_name[name]["dead"] for name in ("a.few", "b.many")] == [3, 2]
    # In more blocks than are read.
    await bury("b.many", 20_000)
    touched = "select pg_stat_get_xact_tuples_returned('runtime.dead_letters'::regclass)"
    async with transaction(db):
        stats, by_name = await told()
        assert await db.fetchval(touched) < 20_000
    assert [(by_name[name]["dead_about"]) for name in ("a.few", "b.many")] == [False, True]
    assert by_name["a.few"]["dead"] == 3
    assert by_name["b.many"]["dead"] == pytest.approx(20_002, rel=0.25)
    assert stats["dead_about"]
    assert stats["dead_letters"] == pytest.approx(20_006, rel=0.25)


@pytest.mark.parametrize("pattern", ["task.output", "task.*"])
async def test_a_page_costs_what_it_holds_however_long_the_history(db: Any, pattern: str) -> None:
    await db.execute(
        "insert into consciousness_stream (key) select case n % 2 when 0 then 'task.output' else 'task.other' end "
        "from generate_series(1, 4000) n"
    )
    touched = (
        "select idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables "
        "where relname = 'consciousness_stream'"
    )
    for options in ({}, {"before": 300}, {"after": 3500}, {"after": 1000, "before": 3000}, {"latest": True}):
        async with transaction(db):
            assert len(await read(db, pattern, max=10, **options)) == (
                10 if "latest" not in options else 1 if pattern == "task.output" else 2
            )
            assert await db.fetchval(touched) < 200, options
