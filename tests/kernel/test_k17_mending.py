"""K17: an operator has kept steps forgotten from one on, edited, or shared with another message."""

from typing import Any

import asyncpg
import pytest

from tests.kernel.driver import Taken, Worker, insert
from tests.kernel.test_k17_steps import keep, names

pytestmark = pytest.mark.anyio


async def dead_with_steps(db: Any, worker: Worker, *labels: tuple[str, str]) -> tuple[int, int]:
    """Bury a delivery that has kept these steps; returns the ids of its message and its letter."""
    await worker.subscribe("a.one=task.output", "b.two=task.output")
    message = await insert(db, "task.output", {"n": 1})
    one, two = sorted(await worker.take(), key=lambda each: each.subscription)
    await worker.finish(two)
    for name, key in labels:
        await keep(db, one, name, f"{name}{key}", key=key)
    await worker.fail(one, outcome="dead")
    [letter] = await db.fetchval("select stream_dead()")
    return message, letter["id"]


def kept(taken: Taken) -> dict[str, Any]:
    return {name + key: value for name, key, _, value in names(taken)}


async def test_k17_a_letter_goes_on_from_a_step_with_others_edited(db: Any, worker: Worker) -> None:
    _, letter = await dead_with_steps(
        db, worker, ("draft", ""), ("mail", "ada"), ("mail", "bob"), ("pay", "")
    )
    edits = {"draft": None, "mail [ada]": {"edited": True}}
    answer = await db.fetchval(
        "select stream_redrive(ids => $1, from_step => 'mail [bob]', edits => $2)", [letter], edits
    )
    assert answer == {"matching": {"a.one": 1}, "redriven": 1}
    [again] = await worker.take()
    assert kept(again) == {"draft": None, "mailada": {"edited": True}}


async def test_k17_a_step_that_no_letter_has_kept_is_refused_and_mends_nothing(
    db: Any, worker: Worker
) -> None:
    _, letter = await dead_with_steps(db, worker, ("draft", ""), ("mail", "ada"), ("mail", "bob"))
    with pytest.raises(asyncpg.NoDataFoundError, match="has not kept darft") as refused:
        await db.fetchval("select stream_redrive(ids => $1, from_step => 'darft')", [letter])
    assert refused.value.hint == "It has kept draft, mail [ada], mail [bob]."
    with pytest.raises(asyncpg.InvalidParameterValueError, match="2 steps of message"):
        await db.fetchval("select stream_redrive(edits => '{\"mail\": 1}')")
    # Without numbers a step is a condition like any other.
    assert await db.fetchval("select stream_redrive(from_step => 'darft')") == {"matching": {}, "redriven": 0}
    dry = await db.fetchval("select stream_redrive(from_step => 'draft', dry_run => true)")
    assert dry == {"matching": {"a.one": 1}, "redriven": 0}
    await db.fetchval("select stream_redrive()")
    [again] = await worker.take()
    assert kept(again) == {"draft": "draft", "mailada": "mailada", "mailbob": "mailbob"}


async def test_k17_the_outcome_of_a_wait_is_forgotten_but_not_edited(db: Any, worker: Worker) -> None:
    _, letter = await dead_with_steps(db, worker, ("draft", ""), ("wait.task.answer", ""))
    with pytest.raises(asyncpg.InvalidParameterValueError, match="its outcome is a message"):
        await db.fetchval("select stream_redrive(ids => $1, edits => '{\"wait.task.answer\": 1}')", [letter])
    await db.fetchval("select stream_redrive(ids => $1, from_step => 'wait.task.answer')", [letter])
    [again] = await worker.take()
    assert kept(again) == {"draft": "draft"}


async def test_k17_a_fork_shares_what_finished_before_a_step_and_leaves_the_first_message_as_it_is(
    db: Any, worker: Worker
) -> None:
    message, letter = await dead_with_steps(db, worker, ("draft", ""), ("mail", "ada"), ("pay", ""))
    steps = (
        "select array_agg((t.name, t.value, t.created_at)::text order by t.created_at) from runtime.steps t"
    )
    before = await db.fetchval(f"{steps} where t.message_id = $1", message)
    fork = await db.fetchval(
        "select stream_fork(message => $1, from_step => 'pay', edits => $2)", message, {"draft": 2}
    )
    assert fork == {"id": fork["id"], "message": message, "subscriptions": ["a.one"], "steps": 2}
    # Of its two subscriptions the one that has kept the step.
    [forked] = await worker.take()
    assert (forked.id, forked.key, forked.value) == (fork["id"], "task.output", {"n": 1})
    assert (forked.parent_id, forked.correlation_id) == (message, str(message))
    assert forked.headers == {"forks": message}
    assert kept(forked) == {"draft": 2, "mailada": "mailada"}
    await keep(db, forked, "pay", "once more")
    await worker.finish(forked)
    assert await db.fetchval(f"{steps} where t.message_id = $1", message) == before
    assert [each["id"] for each in await db.fetchval("select stream_dead()")] == [letter]


async def test_k17_a_fork_of_what_nobody_has_kept_is_refused(db: Any, worker: Worker) -> None:
    message, _ = await dead_with_steps(db, worker, ("draft", ""))
    with pytest.raises(asyncpg.NoDataFoundError, match="no handler has kept pay for message") as refused:
        await db.fetchval("select stream_fork(message => $1, from_step => 'pay')", message)
    assert refused.value.hint == "There is: a.one with draft"
    with pytest.raises(asyncpg.NoDataFoundError, match=r"no handler b\.two has kept a step"):
        await db.fetchval("select stream_fork(message => $1, subscription => 'b.two')", message)
    with pytest.raises(asyncpg.NoDataFoundError, match="there is no message 999"):
        await db.fetchval("select stream_fork(message => 999)")
    assert await db.fetchval("select count(*) from consciousness_stream") == 1
