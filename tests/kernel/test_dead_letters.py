"""What can be done about dead letters, and does a dead letter hold up its key where it should?"""

from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Taken, Worker, advance, insert, send
from tests.kernel.schedule import started, transaction, until_waiting

pytestmark = pytest.mark.anyio


async def bury(worker: Worker, *taken: Taken, error: str = "ValueError: no") -> None:
    """End these deliveries as dead letters."""
    await worker.fail(*taken, outcome="dead", reason="rejected", error=error)


async def call(db: Any, function: str, **arguments: Any) -> Any:
    """Call an operation by its named arguments."""
    named = ", ".join(f"{name} => ${place}" for place, name in enumerate(arguments, start=1))
    return await db.fetchval(f"select public.{function}({named})", *arguments.values())


async def test_g5_a_dead_letter_keeps_everything_there_is_to_know(db: Any, worker: Worker) -> None:
    await worker.subscribe({"name": "a.b", "patterns": ["k"], "max_attempts": 2})
    number = await insert(db, "k", {"n": 1}, agent="writer")
    await worker.fail(*await worker.take(), error="KeyError: one", traceback="first")
    await worker.fail(*await worker.take(), error="KeyError: two", traceback="second")
    (letter,) = await call(db, "stream_dead", details=True)
    assert (letter["subscription"], letter["key"], letter["message_id"]) == ("a.b", "k", number)
    assert (letter["reason"], letter["error"], letter["traceback"]) == ("failed", "KeyError: two", "second")
    assert letter["message"]["value"] == {"n": 1}
    assert letter["message"]["agent"] == "writer"
    assert [(a["attempt"], a["outcome"], a["error"]) for a in letter["attempts"]] == [
        (1, "failed", "KeyError: one"),
        (2, "dead", "KeyError: two"),
    ]
    assert {a["worker"] for a in letter["attempts"]} == {str(worker.id)}
    (listed,) = await call(db, "stream_dead")
    assert listed["attempt_count"] == 2
    assert not {"message", "traceback", "attempts"} & set(listed)


async def test_dead_letters_are_chosen_by_all_conditions_at_once(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.one", "a.two=task.>")
    await send(db, ("task.one", 1), ("task.two", 2), ("task.two", 3))
    for each in await worker.take():
        await bury(worker, each, error=f"ValueError: number {each.value}")
    every = await call(db, "stream_dead")
    assert len(every) == 4
    assert [each["id"] for each in every] == sorted((each["id"] for each in every), reverse=True)

    async def chosen(**conditions: Any) -> list[tuple[str, str]]:
        found = await call(db, "stream_dead", **conditions)
        return sorted((each["subscription"], each["error"]) for each in found)

    assert len(await chosen(subscription="a.two")) == 3
    assert len(await chosen(pattern="task.two")) == 2
    assert len(await chosen(pattern="*.one")) == 2
    assert await chosen(error="NUMBER 2") == [("a.two", "ValueError: number 2")]
    assert await chosen(error="number 1", subscription="a.one") == [("a.one", "ValueError: number 1")]
    assert await chosen(older_than_seconds=3600) == []
    assert len(await chosen(before=every[1]["id"])) == 2
    assert len(await chosen(max=1)) == 1
    with pytest.raises(asyncpg.PostgresError, match="is not a pattern"):
        await chosen(pattern="task..one")

    preview = await call(db, "stream_redrive", pattern="task.two", dry_run=True)
    assert preview == {"matching": {"a.two": 2}, "redriven": 0}
    assert len(await call(db, "stream_dead")) == 4
    done = await call(db, "stream_redrive", pattern="task.two", error="number 3")
    assert done == {"matching": {"a.two": 1}, "redriven": 1}
    gone = await call(db, "stream_discard", subscription="a.one")
    assert gone == {"matching": {"a.one": 1}, "discarded": 1}
    assert len(await call(db, "stream_dead")) == 2
    (again,) = await worker.take()
    assert (again.value, again.attempts, again.crashes) == (3, 0, 0)


async def test_g5_a_pruned_message_is_brought_back_for_its_redrive_alone(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=k", "b.two=k")
    number = (await send(db, {"key": "k", "value": {"n": 1}, "dedup_key": "once", "correlation_id": "c"}))[0]
    one, two = await worker.take()
    await bury(worker, one)
    await worker.finish(two)
    await db.execute("update consciousness_stream set created_at = created_at - interval '1 h'")
    assert (await call(db, "stream_prune", older_than_seconds=60.0))["pruned"] == 1
    assert (await call(db, "stream_redrive", subscription="a.one"))["redriven"] == 1
    (again,) = await worker.take()
    assert (again.id, again.subscription, again.value) == (number, one.subscription, {"n": 1})
    assert again.correlation_id == "c"
    # It counts as written today: retention must not take it away before it is handled.
    assert await call(db, "stream_prune", older_than_seconds=60.0) == {
        "pruned": 0,
        "expired": 0,
        "last": None,
    }
    await worker.finish(again)
    assert await call(db, "stream_dead") == []


async def test_a_value_of_null_comes_back_as_null(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=k")
    await insert(db, "k", None)
    await bury(worker, *await worker.take())
    await db.execute("delete from consciousness_stream")
    await call(db, "stream_redrive", subscription="a.one")
    (again,) = await worker.take()
    assert again.value is None


ORDERED = {"name": "a.b", "patterns": ["k.*"], "ordered": True}


async def test_g8_a_dead_letter_lets_the_next_of_its_key_pass_or_holds_it_up(db: Any, worker: Worker) -> None:
    await worker.subscribe(ORDERED, {**ORDERED, "name": "a.strict", "dead_blocks": True})
    first, second, other = await send(db, ("k.1", 1), ("k.1", 2), ("k.2", 3))
    heads = await worker.take()
    assert sorted(each.id for each in heads) == [first, first, other, other]
    await bury(worker, *(each for each in heads if each.id == first))
    await worker.finish(*(each for each in heads if each.id == other))
    passed = await worker.take()
    assert [(each.id, each.subscription) for each in passed] == [(second, worker.numbers["a.b"])]
    await worker.finish(*passed)
    # Nothing that looks again lets the blocked key go: neither a sweep, nor a later message, nor its end.
    third = await insert(db, "k.1", 4)
    taken = await worker.take()
    assert [(each.id, each.subscription) for each in taken] == [(third, worker.numbers["a.b"])]
    await worker.finish(*taken)
    assert await worker.take() == []
    stats = await db.fetchval("select public.stream_stats()")
    (strict,) = (each for each in stats["subscriptions"] if each["name"] == "a.strict")
    assert (strict["blocked"], strict["parked"], strict["running"], strict["dead"]) == (1, 2, 0, 1)


@pytest.mark.parametrize("way", ["redriven", "discarded", "redeclared", "pruned"])
async def test_g8_a_blocked_key_goes_on_in_order(db: Any, worker: Worker, connect: Any, way: str) -> None:
    await worker.subscribe({**ORDERED, "dead_blocks": True})
    first, second, third = await send(db, ("k.1", 1), ("k.1", 2), ("k.1", 3))
    await bury(worker, *await worker.take())
    assert await worker.take() == []
    expected = [second, third]
    if way == "redriven":
        assert (await call(db, "stream_redrive", subscription="a.b"))["redriven"] == 1
        expected = [first, second, third]
    elif way == "discarded":
        assert (await call(db, "stream_discard", subscription="a.b"))["discarded"] == 1
    elif way == "redeclared":
        async with connect() as connection:
            await Worker(connection).subscribe(ORDERED)
    else:
        await db.execute(
            "update consciousness_stream set created_at = created_at - interval '1 h' where id = $1", first
        )
        assert (await call(db, "stream_prune", older_than_seconds=60.0))["expired"] == 1
    for number in expected:
        taken = await worker.take()
        assert [each.id for each in taken] == [number]
        await worker.finish(*taken)
    assert await worker.take() == []


async def test_k10_a_blocked_message_is_processed_when_its_letter_is_discarded(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe({"name": "a.b", "patterns": ["k"], "ordered": True, "dead_blocks": True})
    number = await insert(db, "k", 1)
    await bury(worker, *await worker.take())
    processed = "select processed from consciousness_stream where id = $1"
    assert await db.fetchval(processed, number) is False
    await call(db, "stream_discard", subscription="a.b")
    assert await db.fetchval(processed, number) is True


async def test_g8_a_lower_id_that_commits_late_passes_a_blocked_head_and_leaves_it_blocked(
    db: Any, worker: Worker, connect: Any
) -> None:
    await worker.subscribe({**ORDERED, "dead_blocks": True})
    async with connect() as writing:
        transaction = writing.transaction()
        await transaction.start()
        late = await insert(writing, "k.1", 1)
        await send(db, ("k.1", 2), ("k.1", 3))
        await bury(worker, *await worker.take())
        assert await worker.take() == []
        await transaction.commit()
    taken = await worker.take()
    assert [each.id for each in taken] == [late]
    await worker.finish(*taken)
    assert await worker.take() == []


async def test_a_late_result_for_a_blocked_delivery_is_refused(db: Any, worker: Worker) -> None:
    await worker.subscribe({**ORDERED, "dead_blocks": True})
    await insert(db, "k.1", 1)
    taken = await worker.take()
    await bury(worker, *taken)
    answer = await worker.finish(*taken)
    assert answer.refused == {(taken[0].id, taken[0].subscription)}
    assert len(await call(db, "stream_dead")) == 1


async def test_an_agent_works_with_its_own_dead_letters_alone(db: Any, worker: Worker) -> None:
    await worker.subscribe("mine.one=k", "other.two=k")
    await insert(db, "k", 1)
    await bury(worker, *await worker.take())
    async with db.transaction():
        await db.execute(
            """select set_config('request.jwt.claims', '{"role": "agent", "agent": "mine"}', true)"""
        )
        assert [each["subscription"] for each in await call(db, "stream_dead")] == ["mine.one"]
        assert (await call(db, "stream_redrive", subscription="other.two"))["redriven"] == 0
        assert (await call(db, "stream_discard"))["discarded"] == 1
    assert [each["subscription"] for each in await call(db, "stream_dead")] == ["other.two"]


@pytest.mark.parametrize("first", ["redrive", "prune"])
async def test_k12_a_redrive_beside_a_prune_loses_nothing(
    db: Any, worker: Worker, connect: Connect, first: str
) -> None:
    await worker.subscribe("a.one=task.output")
    (sent,) = await send(db, ("task.output", 1))
    await worker.fail(*await worker.take(), outcome="dead")
    await advance(db, 61)
    async with connect() as other:
        calls = {"redrive": "select stream_redrive()", "prune": "select stream_prune(60)"}
        (second,) = calls.keys() - {first}
        async with (
            transaction(db) as open_one,
            AsyncExitStack() as stack,
        ):
            await db.fetchval(calls[first])
            going = await stack.enter_async_context(started(lambda: other.fetchval(calls[second])))
            if first == "prune":
                await until_waiting(worker.connection, other)
            else:
                # It waits for nobody: what is being brought back is left for the next time.
                assert (await going.outcome())["pruned"] == 0
            await open_one.commit()
            await going.outcome()
    (again,) = await worker.take()
    assert (again.id, again.value) == (sent, 1)


async def test_k10_what_was_processed_and_pruned_comes_back_as_processed(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output", "b.all=site.>")
    await send(db, ("task.output", 1), ("site.output", 2))
    await worker.fail(*await worker.take(), outcome="dead")
    await advance(db, 61)
    assert (await db.fetchval("select stream_prune(60)"))["pruned"] == 2
    await db.fetchval("select stream_redrive()")
    rows = await db.fetch("select key, processed from consciousness_stream order by key")
    assert [tuple(row) for row in rows] == [("site.output", False), ("task.output", True)]
