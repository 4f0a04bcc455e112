"""K8: failures count in attempts, ended leases in crashes; giving back and putting off count nothing."""

from typing import Any

import pytest

from tests.kernel.driver import Taken, Worker, advance, insert, send
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


async def counts(db: Any) -> tuple[int, int]:
    """The attempts and crashes of the only delivery."""
    row = await db.fetchrow("select attempts, crashes from runtime.deliveries")
    return row["attempts"], row["crashes"]


async def crash(db: Any, worker: Worker, times: int) -> None:
    """Take the only delivery and never come back, so many times."""
    for _ in range(times):
        taken = (await worker.take()) or (await worker.take(alone=True))
        assert len(taken) == 1
        await advance(db, 31)


async def test_k8_each_end_of_an_attempt_counts_where_it_belongs(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    for outcome, expected in (
        ("released", (0, 0)),
        ("later", (0, 0)),
        ("failed", (1, 0)),
        ("released", (1, 0)),
    ):
        (taken,) = await worker.take()
        await worker.fail(taken, outcome=outcome)
        assert await counts(db) == expected
    (taken,) = await worker.take()
    await advance(db, 31)
    # Nobody has looked yet, so the lease is still the current one.
    assert (await worker.exchange(renew=[taken.report()])).more["lost"] == []
    assert await counts(db) == (1, 0)
    await advance(db, 31)
    (again,) = await worker.take()
    assert await counts(db) == (1, 1)
    assert (again.attempts, again.crashes) == (1, 1)
    await worker.finish(again)
    runs = await db.fetch("select outcome, attempt from runtime.runs order by ended_at")
    assert [tuple(run) for run in runs] == [("later", 1), ("failed", 1), ("crashed", 2), ("done", 3)]


async def test_g5_k8_the_last_failure_is_a_dead_letter_with_all_that_happened(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe(
        {"name": "a.one", "patterns": ["task.output"], "max_attempts": 3, "max_crashes": 2}
    )
    message = await insert(db, "task.output", {"n": 1}, agent="writer")
    await crash(db, worker, 1)
    for n in range(3):
        # Crashes have a limit of their own and bring no failure nearer.
        (taken,) = await worker.take()
        await worker.fail(taken, error=f"ValueError: {n}", traceback=f"line {n}")
    letter = await db.fetchrow("select * from runtime.dead_letters")
    assert (letter["message_id"], letter["subscription_name"], letter["key"]) == (
        message,
        "a.one",
        "task.output",
    )
    assert (letter["reason"], letter["error"], letter["traceback"]) == ("failed", "ValueError: 2", "line 2")
    assert (letter["message"]["value"], letter["message"]["agent"]) == ({"n": 1}, "writer")
    assert [(each["outcome"], each["error"]) for each in letter["attempts"]] == [
        ("crashed", "its lease expired: the worker died, froze or lost the database"),
        ("failed", "ValueError: 0"),
        ("failed", "ValueError: 1"),
        ("dead", "ValueError: 2"),
    ]
    assert all(each["ended_at"] for each in letter["attempts"])
    assert {each["worker"] for each in letter["attempts"]} == {str(worker.id)}
    assert await worker.take() == []
    assert await db.fetchval("select processed from consciousness_stream")


async def test_g5_a_crash_names_the_worker_that_died_though_it_has_taken_more_since(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    another = Worker(worker.connection, numbers=worker.numbers)
    first = await insert(db, "task.output", 1)
    await worker.take()
    await insert(db, "task.output", 2)
    (second,) = await worker.take()
    await worker.finish(second)
    await advance(db, 31)
    (taken,) = await another.take()
    assert taken.id == first
    crashed = await db.fetchrow("select message_id, worker from runtime.runs where outcome = 'crashed'")
    assert (crashed["message_id"], crashed["worker"]) == (first, worker.id)


async def test_g5_k8_a_rejected_one_is_dead_at_once(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", 1)
    (taken,) = await worker.take()
    await worker.fail(taken, outcome="dead", reason="rejected", error="Reject: no title", delay=100)
    assert (
        await db.fetchval("select reason || ': ' || error from runtime.dead_letters")
        == "rejected: Reject: no title"
    )
    assert await db.fetchval("select count(*) from runtime.deliveries") == 0


async def poison(db: Any, worker: Worker) -> tuple[int, list[int]]:
    """A message whose worker has died twice, and three neighbours that have not been looked at."""
    await worker.subscribe("a.one=task.output", "b.other=site.output")
    poisoned = await insert(db, "task.output", "poison")
    await crash(db, worker, 2)
    return poisoned, await send(db, ("task.output", 1), ("task.output", 2), ("site.output", 3))


async def test_g5_g6_k8_a_delivery_that_crashed_twice_is_taken_alone(db: Any, worker: Worker) -> None:
    poisoned, neighbours = await poison(db, worker)
    answer = await worker.exchange(want=10, due=True)
    assert sorted(answer.ids) == neighbours
    assert answer.more["poison"] is True
    assert answer.more["next_due"] > 1
    answer = await worker.exchange(want=10, due=True, alone=True)
    assert answer.ids == [poisoned]
    assert answer.taken[0].crashes == 2
    assert answer.more["poison"] is False
    assert (await worker.exchange(want=10, due=True, alone=True)).ids == []


async def test_k8_two_poison_messages_are_not_taken_together(db: Any, worker: Worker) -> None:
    await worker.subscribe(
        "a.one=task.output",
        "b.other=task.output",
        {"name": "c.row", "patterns": ["task.output"], "ordered": True},
    )
    await insert(db, "task.output", "poison")
    for _ in range(2):
        assert len(await worker.take()) == 3
        await advance(db, 31)
    assert await worker.take() == []
    for left in (True, True, False):
        answer = await worker.exchange(want=10, due=True, alone=True)
        assert len(answer.ids) == 1
        assert answer.more["poison"] is left


async def fail_two_poison_messages_in_turn(db: Any, worker: Worker) -> list[int]:
    """The subscriptions of the poison messages as they are taken, each of them failing and due again at once."""
    numbers = await worker.subscribe(
        "a.one=task.output", {"name": "b.row", "patterns": ["task.output"], "ordered": True}
    )
    await insert(db, "task.output", "poison")
    for _ in range(2):
        assert len(await worker.take()) == 2
        await advance(db, 31)
    assert await worker.take() == []
    turns = []
    for _ in range(4):
        (taken,) = await worker.take(alone=True)
        turns.append(taken.subscription)
        await worker.fail(taken, outcome="later", delay=0)
    assert set(turns) <= set(numbers.values())
    return turns


async def test_g6_k8_a_poison_message_that_fails_again_and_again_holds_up_no_other(
    db: Any, worker: Worker
) -> None:
    first, second, third, fourth = await fail_two_poison_messages_in_turn(db, worker)
    assert first != second
    assert (first, second) == (third, fourth)


async def test_g6_k8_without_it_one_poison_message_goes_first_for_ever(db: Any, worker: Worker) -> None:
    await switch_off(db, "runtime.take_alone", "order by d.visible_at", "order by s.id")
    assert len(set(await fail_two_poison_messages_in_turn(db, worker))) == 1


async def test_k8_without_it_the_poison_is_handed_out_among_its_neighbours(db: Any, worker: Worker) -> None:
    await switch_off(
        db, "runtime.take_due", "= coalesce((pins ->> w.key)::integer, 0) + alone::integer", "in (0, 1)"
    )
    poisoned, neighbours = await poison(db, worker)
    assert sorted((await worker.exchange(want=10, due=True)).ids) == [poisoned, *neighbours]


async def test_g5_k8_a_message_that_kills_each_process_ends_as_a_dead_letter_by_itself(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe({"name": "a.one", "patterns": ["task.output"], "max_crashes": 3})
    message = await insert(db, "task.output", "poison")
    await crash(db, worker, 3)
    # Taking an exhausted delivery makes it a dead letter instead.
    assert await worker.take(alone=True) == []
    letter = await db.fetchrow(
        "select message_id, reason, error, jsonb_array_length(attempts) from runtime.dead_letters"
    )
    assert tuple(letter) == (message, "crashed", "its worker died 3 times while handling it", 3)
    assert await db.fetchval("select count(*) from runtime.deliveries") == 0
    assert await db.fetchval("select processed from consciousness_stream")


async def test_k8_without_it_the_poison_goes_round_for_ever(db: Any, worker: Worker) -> None:
    await switch_off(db, "runtime.settle_crashes", "set crashes = d.crashes + 1, lease", "set lease")
    await worker.subscribe({"name": "a.one", "patterns": ["task.output"], "max_crashes": 1})
    await insert(db, "task.output", "poison")
    await crash(db, worker, 4)
    assert await db.fetchval("select count(*) from runtime.dead_letters") == 0


async def test_k8_a_poison_message_that_is_given_back_stays_one(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    await insert(db, "task.output", "poison")
    await crash(db, worker, 2)
    for outcome in ("released", "later", "failed"):
        assert await worker.take() == []
        taken: list[Taken] = await worker.take(alone=True)
        await worker.fail(*taken, outcome=outcome)
    assert await counts(db) == (1, 2)
    assert await worker.take() == []
    assert len(await worker.take(alone=True)) == 1
