"""Is what a person sees of the stream true, and is it found without reading the whole of it?"""

from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.kernel.driver import Worker, insert

pytestmark = pytest.mark.anyio


async def call(db: Any, function: str, **arguments: Any) -> Any:
    """Call a view by its named arguments."""
    named = ", ".join(f"{name} => ${place}" for place, name in enumerate(arguments, start=1))
    return await db.fetchval(f"select public.{function}({named})", *arguments.values())


async def rows_read(db: Any) -> int:
    """How many rows of the stream this connection has read so far, but for what it has told the statistics."""
    found = await db.fetchval(
        "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'consciousness_stream'"
    )
    return int(found or 0)


async def test_a_trace_tells_the_whole_tree_with_every_attempt(db: Any, worker: Worker) -> None:
    await worker.subscribe({"name": "a.b", "patterns": ["k"], "max_attempts": 3})
    first = await insert(db, "k", {"n": 1})
    await worker.fail(*await worker.take(), error="KeyError: one", traceback="where")
    await worker.finish(*await worker.take())
    child, other = [
        await db.fetchval(
            "insert into consciousness_stream (key, parent_id) values ($1, $2) returning id", key, first
        )
        for key in ("c", "d")
    ]
    grandchild = await db.fetchval(
        "insert into consciousness_stream (key, parent_id) values ('e', $1) returning id", child
    )
    for asked in (first, child, other, grandchild):
        trace = await call(db, "stream_trace", message=asked)
        assert [(each["id"], each["depth"]) for each in trace["messages"]] == [
            (first, 0), (child, 1), (grandchild, 2), (other, 1),
        ]  # fmt: skip
        assert not trace["more"]
    (handled,) = trace["messages"][0]["handled"]
    assert (handled["subscription"], handled["state"], handled["attempts"]) == ("a.b", "done", 2)
    assert [(run["attempt"], run["outcome"], run["error"]) for run in handled["runs"]] == [
        (1, "failed", "KeyError: one"), (2, "done", None),
    ]  # fmt: skip
    few = await call(db, "stream_trace", message=grandchild, max=1)
    assert few["more"]
    assert grandchild in [each["id"] for each in few["messages"]]
    assert (await call(db, "stream_trace", message=10**9))["messages"] == []


async def test_messages_are_counted_truly_before_any_vacuum(db: Any) -> None:
    await db.execute("alter table consciousness_stream set (autovacuum_enabled = false)")
    for more, told in ((3, [3, False]), (9_997, [10_000, False])):
        await db.execute(
            "insert into consciousness_stream (key) select 'k' from generate_series(1, $1::integer)", more
        )
        stats = await db.fetchval("select stream_stats()")
        assert [stats["messages"], stats["messages_about"]] == told
    await db.execute("insert into consciousness_stream (key) select 'k' from generate_series(1, 10000)")
    await db.execute("delete from consciousness_stream where id <= 5000")
    await db.execute("select pg_stat_force_next_flush()")
    stats = await db.fetchval("select stream_stats()")
    assert [stats["messages"], stats["messages_about"]] == [15_000, True]


async def test_a_conversation_crosses_an_answer_and_what_a_person_wrote_into_it(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.b=k")
    first = await insert(db, "k", {"n": 1})
    usage = {"tokens_in": 7, "tokens_out": 2, "cost": 0.25, "model": "m"}
    await worker.finish(*await worker.take(), usage=usage)
    child = await written(db, "c", parent_id=first, correlation_id=str(first))
    decision = await written(db, "decided", correlation_id=str(first))
    effect = await written(db, "e", parent_id=decision, correlation_id=str(first))
    await written(db, "k", correlation_id="another")
    # A worker in another language may report anything.
    (other,) = await worker.take()
    await worker.finish(other, usage={"tokens_in": "many", "cost": [1]})
    for asked in (first, child, decision, effect):
        trace = await call(db, "stream_trace", message=asked)
        assert [(each["id"], each["depth"]) for each in trace["messages"]] == [
            (first, 0), (child, 1), (decision, 1), (effect, 2),
        ]  # fmt: skip
    found = await call(db, "stream_conversation", correlation=str(first))
    assert [each["id"] for each in found["messages"]] == [first, child, decision, effect]
    assert found["messages"][0]["handled"][0]["runs"][0]["usage"] == usage
    totals = found["totals"]
    assert (totals["messages"], totals["attempts"], totals["failed"], totals["open"]) == (4, 1, 0, 0)
    assert totals["spent"] == {"tokens_in": 7, "tokens_out": 2, "cost": 0.25, "models": ["m"]}
    assert (await call(db, "stream_conversation", correlation="another"))["totals"]["spent"]["cost"] == 0
    page = await call(db, "stream_conversation", correlation=str(first), max=3)
    rest = await call(db, "stream_conversation", correlation=str(first), after=page["next"], max=3)
    assert [each["id"] for each in (*page["messages"], *rest["messages"])] == [first, child, decision, effect]
    assert rest["next"] is None
    assert (await call(db, "stream_conversation", correlation="of nobody"))["messages"] == []


async def written(db: Any, key: str, **columns: Any) -> int:
    """Write a message with these columns; returns its id."""
    places = ", ".join(f"${number}" for number in range(1, len(columns) + 2))
    return int(await db.fetchval(
        f"insert into consciousness_stream (key, {', '.join(columns)}) values ({places}) returning id",
        key, *columns.values(),
    ))  # fmt: skip


async def test_a_page_looks_at_a_bounded_number_of_rows_and_says_where_to_go_on(db: Any) -> None:
    await db.execute(
        "insert into consciousness_stream (key, value) select 'k', to_jsonb(i) from generate_series(1, 3000) i"
    )
    await db.execute("update consciousness_stream set value = '\"needle\"' where id = 10")
    before, seen = None, []
    for _ in range(20):
        given = {} if before is None else {"before": before}
        earlier = await rows_read(db)
        page = await call(db, "stream_page", text="NEEDLE", look=200, **given)
        assert await rows_read(db) - earlier < 1500
        seen += [each["id"] for each in page["messages"]]
        before = page["next"]
        if before is None:
            break
    assert seen == [10]


async def test_values_that_are_searched_are_weighed_first(db: Any) -> None:
    await db.execute(
        "insert into consciousness_stream (key, value) "
        "select 'k', jsonb_build_object('n', i, 'x', (select string_agg(md5((i * 10000 + j)::text), '') "
        "from generate_series(1, 10000) j)) from generate_series(1, 20) i"
    )
    before, seen, pages = None, [], 0
    while pages == 0 or before is not None:
        given = {} if before is None else {"before": before}
        page = await call(db, "stream_page", text='"n": 2,', **given)
        # A third of a megabyte each.
        assert page["looked"] <= 7
        seen += [each["id"] for each in page["messages"]]
        before, pages = page["next"], pages + 1
    assert (seen, pages) == ([2], 4)


@pytest.mark.parametrize("pattern", ["rare.*", "*.thing", "rare.>"])
async def test_what_is_rare_by_its_key_is_found_at_once(db: Any, pattern: str) -> None:
    rare = await db.fetchval("insert into consciousness_stream (key) values ('rare.thing') returning id")
    await db.execute(
        "insert into consciousness_stream (key) select 'k.' || i % 50 from generate_series(1, 6000) i"
    )
    page = await call(db, "stream_page", pattern=pattern, look=100)
    assert [each["id"] for each in page["messages"]] == [rare]
    assert page["next"] is None
    for way in ({"after": 0}, {"before": 7000}, {}):
        assert [row["id"] for row in await call(db, "stream_read", pattern=pattern, **way)] == [rare]


@pytest.mark.parametrize("most", [1, 3, 10_000])
async def test_a_read_by_a_pattern_is_whole_however_it_is_read(db: Any, most: int) -> None:
    # More keys than are looked up one by one, and more rows than one stretch: every way of reading is taken.
    await db.execute(
        "insert into consciousness_stream (key) select case when i % 1999 = 0 then 'k.x' || i || '.end' "
        "else 'k.x' || i % 2500 end from generate_series(1, 12000) i"
    )
    wanted = [1999, 3998, 5997, 7996, 9995, 11994]
    for pattern in ("k.*.end", "k.*.*", "*.*.end"):
        found, after = [], 0
        while page := await call(db, "stream_read", pattern=pattern, after=after, max=most):
            found += [row["id"] for row in page]
            after = found[-1]
        assert found == wanted
        found, before = [], 10**9
        while page := await call(db, "stream_read", pattern=pattern, before=before, max=most):
            found = [row["id"] for row in page] + found
            before = found[0]
        assert found == wanted


async def test_activity_is_told_for_a_stretch_of_time(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.b=k")
    (number,) = worker.numbers.values()
    await db.execute(
        "insert into runtime.runs (message_id, subscription, ended_at, attempt, outcome, seconds) "
        "select i, $1, date_trunc('minute', clock_timestamp()) - make_interval(mins => i), 1, 'done', 0.5 "
        "from generate_series(0, 90) i",
        number,
    )

    async def told(**given: float) -> list[int]:
        answer = await call(db, "stream_activity", **given)
        return [answer["minute"] - minute for minute, *_ in answer["minutes"]]

    assert await told() == list(range(60, -1, -1))
    assert await told(since_seconds=60.0) == [1, 0]
    assert await told(since_seconds=600.0, until_seconds=300.0) == [10, 9, 8, 7, 6]
    with pytest.raises(asyncpg.InvalidParameterValueError, match="until_seconds"):
        await call(db, "stream_activity", since_seconds=60.0, until_seconds=61.0)


async def test_a_page_is_chosen_by_time_state_and_agent(db: Any, worker: Worker) -> None:
    await worker.subscribe({"name": "a.b", "patterns": ["k"]})
    old, dead, done, waits, alone = [
        await db.fetchval(
            "insert into consciousness_stream (key, agent, created_at) "
            "values ($1, $2, now() - make_interval(hours => $3)) returning id",
            key, agent, hours,
        )
        for key, agent, hours in (("o", "x", 5), ("k", "x", 4), ("k", "y", 3), ("k", "y", 2), ("z", "y", 1))
    ]  # fmt: skip
    first, second, third = await worker.take(3)
    await worker.fail(first, outcome="dead", reason="rejected", error="no")
    await worker.finish(second)

    async def ids(**chosen: Any) -> list[int]:
        return [each["id"] for each in (await call(db, "stream_page", **chosen))["messages"]]

    assert (first.id, second.id, third.id) == (dead, done, waits)
    assert await ids() == [alone, waits, done, dead, old]
    assert await ids(state="dead") == [dead]
    assert await ids(state="failed") == [dead]
    assert await ids(state="done") == [done]
    assert await ids(state="open") == [waits]
    assert await ids(state="unhandled") == [alone, old]
    assert await ids(agent="x") == [dead, old]
    now = await db.fetchval("select now()")
    assert await ids(since=now - timedelta(hours=3.5), until=now - timedelta(hours=1.5)) == [waits, done]


async def test_an_amended_dead_letter_is_delivered_to_its_subscription_alone(db: Any, worker: Worker) -> None:
    await worker.subscribe({"name": "a.b", "patterns": ["k"]}, {"name": "c.d", "patterns": ["k"]})
    good = await insert(db, "k", {"n": 1})
    bad = await insert(db, "k", {"n": "x"})
    for taken in await worker.take(4):
        if taken.id == bad and taken.subscription == min(worker.numbers.values()):
            await worker.fail(
                taken, outcome="dead", reason="rejected", error="ValueError: 'x' is no number 7"
            )
        else:
            await worker.finish(taken)
    (group,) = await call(db, "stream_dead_groups")
    assert (group["kind"], group["count"]) == ("ValueError: … is no number #", 1)
    assert group["errors"] == ["ValueError: 'x' is no number 7"]
    (letter,) = group["ids"]
    assert (await call(db, "stream_last_good", letter=letter))["id"] == good
    amended = await call(db, "stream_amend", letter=letter, value={"n": 2})
    (again,) = await worker.take(4)
    assert (again.id, again.value, again.parent_id) == (amended["id"], {"n": 2}, bad)
    assert again.subscription == min(worker.numbers.values())
    assert await call(db, "stream_dead_groups") == []
    with pytest.raises(asyncpg.NoDataFoundError, match="no dead letter"):
        await call(db, "stream_amend", letter=letter, value=1)
