"""K17: the result of a step is kept by the current lease alone, and comes with every later attempt of its delivery."""

from typing import Any

import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Taken, Worker, insert
from tests.kernel.mutations import broken
from tests.kernel.schedule import started, transaction, until_waiting
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


async def keep(connection: Any, taken: Taken, name: str, value: Any, **more: Any) -> dict[str, Any]:
    """Keep one result, as a worker does."""
    given = {"key": "", "occurrence": 1, **more}
    answer = await connection.fetchval(
        "select stream_step(message => $1, subscription => $2, lease => $3, name => $4, key => $5, occurrence => $6, "
        "value => $7)",
        taken.id, taken.subscription, taken.lease, name, given["key"], given["occurrence"], value,
    )  # fmt: skip
    return dict(answer)


async def taken_once(db: Any, worker: Worker, **options: Any) -> Taken:
    await worker.subscribe({"name": "a.one", "patterns": ["task.output"], **options})
    await insert(db, "task.output", 1)
    [taken] = await worker.take()
    assert taken.steps is None
    return taken


def names(taken: Taken) -> list[Any]:
    return [(name, key, occurrence, value) for name, key, occurrence, value, *_ in taken.steps or ()]


async def abandon(db: Any) -> None:
    """Let every lease end now."""
    await db.execute("update runtime.deliveries set visible_at = clock_timestamp() where lease is not null")


async def test_k17_steps_come_with_every_later_attempt(db: Any, worker: Worker) -> None:
    first = await taken_once(db, worker)
    assert await keep(db, first, "charge", {"receipt": 7}) == {"held": True}
    assert await keep(db, first, "mail", None, key="ada") == {"held": True}
    assert await keep(db, first, "mail", "sent", key="ada", occurrence=2) == {"held": True}
    expected = [("charge", "", 1, {"receipt": 7}), ("mail", "ada", 1, None), ("mail", "ada", 2, "sent")]
    await worker.fail(first)
    [second] = await worker.take()
    assert names(second) == expected
    # A crash, giving back and putting off bring them along as well.
    await abandon(db)
    [third] = await worker.take()
    await worker.fail(third, outcome="released")
    [fourth] = await worker.take()
    await worker.fail(fourth, outcome="later", delay=0)
    [fifth] = await worker.take()
    assert names(third) == names(fourth) == names(fifth) == expected
    # So does an answer that is asked for again.
    repeated = await worker.exchange(n=worker.n, want=1, due=True)
    assert [names(each) for each in repeated.taken] == [expected]


async def test_g12_k17_a_late_step_of_a_frozen_process_is_refused(db: Any, worker: Worker) -> None:
    old = await taken_once(db, worker)
    await abandon(db)
    [new] = await worker.take()
    assert await keep(db, old, "charge", "late") == {"held": False}
    assert await keep(db, new, "charge", "in time") == {"held": True}
    await worker.finish(new)
    assert await keep(db, new, "charge", "too late", occurrence=2) == {"held": False}
    assert await db.fetchval("select array_agg(value #>> '{}') from runtime.steps") == ["in time"]


async def test_g12_k17_steps_of_several_deliveries_are_kept_by_one_call_and_each_by_its_own_lease(
    db: Any, worker: Worker
) -> None:
    lost = await taken_once(db, worker)
    await abandon(db)
    await insert(db, "task.output", 2)
    one, other = await worker.take(2)
    assert await keep(db, one, "charge", "kept before") == {"held": True}
    steps = [
        {
            "message": taken.id, "subscription": taken.subscription, "lease": taken.lease, "name": name, "key": "",
            "occurrence": 1, "value": value,
        }
        for taken, name, value in ((other, "mail", None), (one, "charge", "again"), (lost, "mail", 3), (one, "mail", 4))
    ]  # fmt: skip
    assert await db.fetchval("select stream_steps($1)", steps) == [
        {"held": True},
        {"held": True, "earlier": ["kept before"]},
        {"held": False},
        {"held": True},
    ]
    await worker.fail(one, other)
    assert [names(each) for each in await worker.take(2)] == [
        [("charge", "", 1, "kept before"), ("mail", "", 1, 4)],
        [("mail", "", 1, None)],
    ]


async def test_k17_without_the_fence_a_frozen_process_decides_for_its_successor(
    db: Any, worker: Worker
) -> None:
    await switch_off(db, "runtime.keep_steps", "and d.lease = g.lease")
    old = await taken_once(db, worker)
    await abandon(db)
    [new] = await worker.take()
    assert await keep(db, old, "charge", "late") == {"held": True}
    assert await keep(db, new, "charge", "in time") == {"held": True, "earlier": ["late"]}


async def test_k17_who_takes_the_delivery_next_waits_for_a_step_that_is_being_kept(
    db: Any, worker: Worker, connect: Connect
) -> None:
    old = await taken_once(db, worker)
    await abandon(db)
    async with connect() as frozen, transaction(frozen) as keeping:
        assert await keep(frozen, old, "charge", "kept") == {"held": True}
        # Skipped, as any row that somebody holds.
        assert await worker.take() == []
        await keeping.commit()
    [new] = await worker.take()
    assert names(new) == [("charge", "", 1, "kept")]


async def test_g12_k17_a_step_waits_for_who_takes_its_delivery_and_is_refused(
    db: Any, worker: Worker, connect: Connect
) -> None:
    old = await taken_once(db, worker)
    await abandon(db)
    async with connect() as other, connect() as frozen, transaction(other) as taking:
        successor = Worker(other, id=worker.id, numbers=worker.numbers)
        assert len(await successor.take()) == 1
        async with started(lambda: keep(frozen, old, "charge", "late")) as late:
            await until_waiting(db, frozen)
            await taking.commit()
            assert await late.outcome() == {"held": False}
    assert await db.fetchval("select count(*) from runtime.steps") == 0


async def test_k17_a_step_whose_answer_was_lost_is_kept_once(db: Any, worker: Worker) -> None:
    taken = await taken_once(db, worker)
    assert await keep(db, taken, "charge", {"receipt": 7}) == {"held": True}
    assert await keep(db, taken, "charge", {"receipt": 7}) == {"held": True, "earlier": [{"receipt": 7}]}
    assert await keep(db, taken, "nothing", None) == {"held": True}
    assert await keep(db, taken, "nothing", None) == {"held": True, "earlier": [None]}


async def asked(connection: Any, taken: Taken) -> dict[str, Any]:
    """Ask whether the step `charge` is kept, as a worker does whose commit was not answered."""
    answer = await connection.fetchval(
        "select stream_step(message => $1, subscription => $2, lease => $3, name => 'charge', key => '', "
        "occurrence => 1, value => null, asking => true)",
        taken.id, taken.subscription, taken.lease,
    )  # fmt: skip
    return dict(answer)


@pytest.mark.parametrize("is_kept", [True, False])
async def test_g14_k17_who_asks_for_a_step_waits_for_who_may_be_keeping_it(
    db: Any, worker: Worker, connect: Connect, is_kept: bool
) -> None:
    taken = await taken_once(db, worker)
    assert await asked(db, taken) == {"held": True, "earlier": []}
    async with connect() as other, connect() as asking, transaction(other) as keeping:
        await keep(other, taken, "charge", 7)
        async with started(lambda: asked(asking, taken)) as answer:
            await until_waiting(db, asking)
            await (keeping.commit() if is_kept else keeping.rollback())
            assert await answer.outcome() == {"held": True, "earlier": [7] if is_kept else []}
    await abandon(db)
    await worker.take()
    assert (await asked(db, taken))["held"] is False


async def test_k17_without_the_lock_a_step_is_denied_that_is_being_kept(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await broken(db, "K17 who asks for a step does not wait")
    taken = await taken_once(db, worker)
    async with connect() as other, transaction(other) as keeping:
        await keep(other, taken, "charge", 7)
        assert await asked(db, taken) == {"held": True, "earlier": []}
        await keeping.commit()
    assert await asked(db, taken) == {"held": True, "earlier": [7]}


async def booked(connection: Any, taken: Taken, name: str) -> None:
    """What a handler's transaction does: a statement of its own, and the step that says so."""
    await connection.execute("insert into bookings values ($1)", name)
    answer = await keep(connection, taken, name, True)
    assert answer["held"], "the transaction is rolled back"


async def bookings(db: Any, worker: Worker) -> Taken:
    """A delivery that runs and has kept a step, and a table for its statements."""
    await db.execute("create table bookings (name text)")
    taken = await taken_once(db, worker)
    await booked(db, taken, "first")
    return taken


async def test_g14_k17_nobody_goes_on_with_a_delivery_beside_a_transaction_that_keeps_its_step(
    db: Any, worker: Worker, connect: Connect
) -> None:
    taken = await bookings(db, worker)
    await abandon(db)
    async with connect() as other, transaction(other) as keeping:
        await booked(other, taken, "second")
        assert await worker.take() == []
        await keeping.commit()
    [again] = await worker.take()
    kept = [name for name, *_ in names(again)]
    assert kept == ["first", "second"] == [row["name"] for row in await db.fetch("select name from bookings")]


async def test_g14_k17_without_the_lock_a_statement_is_there_whose_step_the_next_attempt_does_not_know(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await broken(db, "G14 who takes a delivery passes by what is being kept")
    taken = await bookings(db, worker)
    await abandon(db)
    async with connect() as other, transaction(other) as keeping:
        await booked(other, taken, "second")
        [again] = await worker.take()
        await keeping.commit()
    assert [name for name, *_ in names(again)] == ["first"]
    assert await db.fetchval("select count(*) from bookings") == 2


async def test_g14_k17_what_was_given_back_keeps_nothing_and_without_that_rule_it_does(
    db: Any, worker: Worker, connect: Connect
) -> None:
    taken = await bookings(db, worker)
    await worker.fail(taken, outcome="released")
    async with connect() as other, transaction(other) as keeping:
        with pytest.raises(AssertionError, match="is rolled back"):
            await booked(other, taken, "late")
        await keeping.rollback()
    assert await db.fetchval("select count(*) from bookings") == 1
    await broken(db, "G14 a step is kept by the lease that the delivery had")
    await booked(db, taken, "late")
    assert await db.fetchval("select count(*) from bookings") == 2


async def test_k17_steps_are_weighed_with_their_message(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    for number in range(3):
        await insert(db, "task.output", number)
    for each in await worker.take():
        await keep(db, each, "draft", "x" * 400_000)
        await worker.fail(each)
    sizes = []
    while taken := (await worker.exchange(want=3, due=True, max_bytes=900_000)).taken:
        sizes.append(len(taken))
        await worker.finish(*taken)
    assert sizes == [2, 1]


async def test_k17_a_redriven_dead_letter_goes_on_with_its_steps_and_a_replay_starts_anew(
    db: Any, worker: Worker
) -> None:
    first = await taken_once(db, worker)
    await keep(db, first, "charge", 1)
    await worker.fail(first, outcome="dead")
    await db.fetchval("select stream_redrive()")
    [redriven] = await worker.take()
    assert names(redriven) == [("charge", "", 1, 1)]
    await worker.finish(redriven)
    await db.fetchval("select stream_replay('a.one')")
    [replayed] = await worker.take()
    assert replayed.steps is None
    assert await db.fetchval("select count(*) from runtime.steps") == 0


async def test_k17_steps_go_with_their_message_or_with_its_dead_letter(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output", "b.two=task.output")
    await insert(db, "task.output", 1)
    one, two = sorted(await worker.take(), key=lambda each: each.subscription)
    await keep(db, one, "charge", 1)
    await keep(db, two, "charge", 2)
    await worker.finish(one)
    await worker.fail(two, outcome="dead")
    await db.fetchval("select stream_prune(0)")
    assert await db.fetchval("select array_agg(value::int) from runtime.steps") == [2]
    await db.fetchval("select stream_discard()")
    assert await db.fetchval("select count(*) from runtime.steps") == 0


@pytest.mark.parametrize(
    ("name", "more"),
    [("", {}), ("x" * 256, {}), ("charge", {"key": "k" * 256}), ("charge", {"occurrence": 0})],
)
async def test_k17_the_table_refuses_what_is_no_step(
    db: Any, worker: Worker, name: str, more: dict[str, Any]
) -> None:
    taken = await taken_once(db, worker)
    with pytest.raises(asyncpg.CheckViolationError):
        await keep(db, taken, name, 1, **more)


async def test_k17_an_agent_keeps_no_step_of_another_agents_delivery(db: Any, worker: Worker) -> None:
    taken = await taken_once(db, worker)
    async with db.transaction():
        await db.execute(
            'select set_config(\'request.jwt.claims\', \'{"role": "agent", "agent": "b"}\', true)'
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await keep(db, taken, "charge", 1)
