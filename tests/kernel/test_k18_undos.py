"""K18: a delivery that dies with finished steps that have undos changes phase instead of ending."""

from typing import Any

import asyncpg
import pytest

from tests.kernel.driver import Taken, Worker, insert
from tests.kernel.mutations import broken
from tests.kernel.test_cancelling import cancel, states
from tests.kernel.test_k18_waits import begun, suspend, wait

pytestmark = pytest.mark.anyio

ERROR = "ValueError: no"


async def keep(connection: Any, taken: Taken, name: str, value: Any = 1, **more: Any) -> dict[str, Any]:
    """Keep one step, as a worker does; one with an undo unless it is told otherwise."""
    given = {"undo": {"step": name, "arguments": {}}, **more}
    answer = await connection.fetchval(
        "select stream_step(message => $1, subscription => $2, lease => $3, name => $4, key => '', occurrence => 1, "
        "value => $5, undo => $6)",
        taken.id, taken.subscription, taken.lease, name, value, given["undo"],
    )  # fmt: skip
    return dict(answer)


async def charged(db: Any, worker: Worker, **options: Any) -> Taken:
    """A delivery that runs, with two finished steps that have undos and one that has none."""
    taken = await begun(db, worker, **options)
    await keep(db, taken, "reserve")
    await keep(db, taken, "look", undo=None)
    await keep(db, taken, "charge")
    return taken


async def die(db: Any, worker: Worker, taken: Taken, death: str) -> None:
    """Have a delivery die."""
    if death == "suspended":
        await wait(db, taken)
        await suspend(worker, taken)
        assert states(await cancel(db, taken.id)) == {"a.one": "undoing"}
    elif death == "cancelled":
        assert states(await cancel(db, taken.id)) == {"a.one": "told"}
        await worker.fail(taken, outcome="cancelled")
    elif death == "crashed":
        await db.execute("update runtime.deliveries set visible_at = clock_timestamp()")
    else:
        await worker.fail(taken, outcome=death)


async def letters(db: Any) -> list[tuple[str, str]]:
    rows = await db.fetch("select reason, error from runtime.dead_letters order by id")
    return [(row["reason"], row["error"]) for row in rows]


def names(taken: Taken) -> list[str]:
    return [name for name, *_ in taken.steps or ()]


@pytest.mark.parametrize(
    ("death", "reason", "error"),
    [
        ("dead", "failed", ERROR),
        ("failed", "failed", ERROR),
        ("crashed", "crashed", "its worker died 1 times while handling it"),
        ("cancelled", "cancelled", "cancelled by an operator"),
        ("suspended", "cancelled", "cancelled by an operator"),
    ],
)
async def test_k18_whatever_it_dies_of_its_undos_run_in_a_second_phase(
    db: Any, worker: Worker, death: str, reason: str, error: str
) -> None:
    first = await charged(db, worker, max_attempts=1, max_crashes=1)
    await die(db, worker, first, death)
    [second] = await worker.take()
    assert (second.attempts, second.crashes, await letters(db)) == (0, 0, [])
    assert names(second) == ["reserve", "look", "charge", "undo"]
    assert [undo and undo["step"] for *_, undo in second.steps or ()] == ["reserve", None, "charge", None]
    assert await db.fetchval("select count(*) from runtime.waits") == 0
    [counted] = (await db.fetchval("select stream_stats()"))["subscriptions"]
    assert [counted[name] for name in ("undoing", "running", "scheduled", "suspended")] == [1, 0, 0, 0]
    assert not (await keep(db, first, "late"))["held"]
    await keep(db, second, "undo.charge", value=True, undo=None)
    # In this phase its attempts are counted anew, and it does not die into a third one.
    await worker.fail(second, outcome="dead", error="OSError: away")
    assert await letters(db) == [
        (reason, f"{error}\nUndone: charge\nCould not be undone: reserve (OSError: away)")
    ]
    assert await worker.take() == []


async def test_k18_a_worker_that_dies_while_it_undoes_has_crashes_of_that_phase(
    db: Any, worker: Worker
) -> None:
    await die(db, worker, await charged(db, worker, max_crashes=2), "dead")
    for crashes in (0, 1):
        [taken] = await worker.take(alone=crashes == 2)
        assert taken.crashes == crashes
        await die(db, worker, taken, "crashed")
    assert await worker.take() == []
    [(reason, error)] = await letters(db)
    assert (reason, error.splitlines()[0]) == ("failed", ERROR)
    assert "reserve (its worker died 2 times" in error


async def test_k18_past_the_point_of_no_return_and_when_cancelled_as_done_nothing_is_undone(
    db: Any, worker: Worker
) -> None:
    past = await charged(db, worker)
    await keep(db, past, "no_return", undo=None)
    await worker.fail(past, outcome="dead")
    assert await letters(db) == [("failed", ERROR)]
    await insert(db, "order.placed", 2)
    [other] = await worker.take()
    await keep(db, other, "charge")
    await worker.fail(other, delay=60)
    assert states(await cancel(db, other.id, outcome="done")) == {"a.one": "ended"}
    assert len(await letters(db)) == 1
    assert await worker.take() == []


async def test_k18_a_redrive_does_again_what_was_undone_and_nothing_else(db: Any, worker: Worker) -> None:
    await die(db, worker, await charged(db, worker), "dead")
    for _ in range(2):
        [taken] = await worker.take()
        await keep(db, taken, "undo.charge", value=True, undo=None)
        await keep(db, taken, "undo.reserve", value={"error": "no"}, undo=None)
        await worker.fail(taken, outcome="undone", error=None)
        await db.fetchval("select stream_redrive()")
        [again] = await worker.take()
        assert [name for name in names(again) if name != "undone"] == ["reserve", "look"]
        assert again.steps is not None
        assert again.steps[-1][:4] == ["undone", "", names(again).count("undone"), [["charge", "", 1]]]
        await keep(db, again, "charge")
        await worker.fail(again, outcome="dead")


async def test_k18_what_was_undone_is_not_edited_and_done_again_from_it_on(db: Any, worker: Worker) -> None:
    await die(db, worker, await charged(db, worker), "dead")
    [taken] = await worker.take()
    for name in ("undo.charge", "undo.reserve"):
        await keep(db, taken, name, value=True, undo=None)
    await db.execute("update runtime.steps set key = '7', occurrence = 2 where name like '%charge'")
    await worker.fail(taken, outcome="undone", error=None)
    # Its error names steps as commands take them.
    assert [error for _, error in await letters(db)] == [f"{ERROR}\nUndone: charge [7] (2), reserve"]
    for call in ("stream_redrive(edits => $1)", f"stream_fork({taken.id}, edits => $1)"):
        with pytest.raises(asyncpg.InvalidParameterValueError, match=r"'reserve' .* was undone") as refused:
            await db.fetchval(f"select {call}", {"look": 1, "reserve": 2})
        assert "Leave it out of the edits" in (refused.value.hint or "")
    with pytest.raises(asyncpg.InvalidParameterValueError, match="keeps no step 'look' to edit"):
        await db.fetchval("select stream_redrive(from_step => 'look', edits => '{\"look\": 1}')")
    # What finished after it goes with it, though it has no undo; in a fork as well.
    forked = await db.fetchval("select stream_fork($1, from_step => 'reserve')", taken.id)
    await db.fetchval("select stream_redrive(from_step => 'reserve')")
    again, fork = sorted(await worker.take(), key=lambda each: each.id)
    assert (names(again), fork.id, names(fork)) == (["undone"], forked["id"], [])


async def test_k18_the_next_of_an_ordered_key_waits_until_the_undos_have_run(db: Any, worker: Worker) -> None:
    taken = await charged(db, worker, ordered=True)
    later = await insert(db, "order.placed", 2)
    assert await worker.take() == []
    await worker.fail(taken, outcome="dead")
    [undoing] = await worker.take()
    assert undoing.id == taken.id
    await worker.fail(undoing, outcome="undone", error=None)
    assert [each.id for each in await worker.take()] == [later]


async def test_k18_without_the_rule_of_no_return_it_is_undone_all_the_same(db: Any, worker: Worker) -> None:
    await broken(db, "K18 undone past the point of no return")
    past = await charged(db, worker)
    await keep(db, past, "no_return", undo=None)
    await worker.fail(past, outcome="dead")
    assert [each.id for each in await worker.take()] == [past.id]


async def test_k18_without_the_second_phase_nothing_is_undone(db: Any, worker: Worker) -> None:
    await broken(db, "K18 a death undoes nothing")
    await die(db, worker, await charged(db, worker), "dead")
    assert await worker.take() == []
    assert await letters(db) == [("failed", ERROR)]


async def test_k18_without_the_mark_a_delivery_is_undone_for_ever(db: Any, worker: Worker) -> None:
    await broken(db, "K18 undoing has no end")
    await die(db, worker, await charged(db, worker), "dead")
    [taken] = await worker.take()
    with pytest.raises(Exception, match="steps_pkey"):
        await worker.fail(taken, outcome="undone", error=None)
