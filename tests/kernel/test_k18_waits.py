"""K18: a suspended delivery goes on with the message that it waits for, whoever writes that when, and once."""

from typing import Any

import anyio
import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Taken, Worker, advance, insert
from tests.kernel.mutations import broken
from tests.kernel.schedule import transaction

pytestmark = pytest.mark.anyio


def payment(**more: Any) -> dict[str, Any]:
    """A wait for a payment, as it crosses the wire."""
    return {"name": "payment.settled", "key": "", "occurrence": 1, "pattern": "payment.settled", **more}


async def wait(connection: Any, taken: Taken, *waits: dict[str, Any]) -> dict[str, Any]:
    """Have a delivery wait; returns the answer."""
    answer = await connection.fetchval(
        "select stream_wait(message => $1, subscription => $2, lease => $3, waits => $4)",
        taken.id, taken.subscription, taken.lease, list(waits) or [payment()],
    )  # fmt: skip
    return dict(answer)


async def suspend(worker: Worker, taken: Taken, *waits: dict[str, Any], delay: float = 0) -> None:
    """Report it as suspended over its waits."""
    places = [[each["name"], each["key"], each["occurrence"]] for each in waits or (payment(),)]
    await worker.exchange(failed=[taken.report(outcome="suspended", delay=delay, waits=places)])


async def begun(db: Any, worker: Worker, value: Any = 1, **options: Any) -> Taken:
    """One delivery that runs."""
    await worker.subscribe({"name": "a.one", "patterns": ["order.placed"], **options})
    await insert(db, "order.placed", value)
    [taken] = await worker.take()
    return taken


async def suspended(db: Any, worker: Worker, *waits: dict[str, Any], **options: Any) -> Taken:
    """One delivery that is suspended, with every writer ended that could have missed it."""
    taken = await begun(db, worker, **options)
    assert (await wait(db, taken, *waits))["outcomes"] == [None] * (len(waits) or 1)
    await suspend(worker, taken, *waits)
    await settled(db, worker)
    return taken


async def settled(db: Any, worker: Worker) -> None:
    """Exchange until no wait is unsettled."""
    with anyio.fail_after(60):
        while await db.fetchval("select exists (select from runtime.unsettled_waits)"):
            assert await worker.take() == []


async def gone_on(worker: Worker) -> Taken:
    """The delivery, once it goes on."""
    with anyio.fail_after(60):
        while not (taken := await worker.take()):
            pass
    [one] = taken
    return one


def outcomes(taken: Taken) -> list[Any]:
    """The outcomes of its waits: the id of a message, or a word."""
    return [
        value.get("id") or next(iter(value)) for name, _, _, value, *_ in taken.steps or () if "wait." in name
    ]


async def test_k18_none_of_a_crowd_that_is_suspended_at_once_runs_again_before_its_message_comes(
    db: Any, worker: Worker
) -> None:
    crowd = 700
    await worker.subscribe({"name": "a.one", "patterns": ["order.placed"]})
    await db.execute(
        "insert into consciousness_stream (key, value) "
        "select 'order.placed', to_jsonb(n) from generate_series(1, $1) n",
        crowd,
    )
    taken: list[Taken] = []
    with anyio.fail_after(60):
        while len(taken) < crowd:
            taken += await worker.take(crowd)
    for each in taken:
        await wait(db, each)
    places = [["payment.settled", "", 1]]
    for part in (taken[:400], taken[400:]):
        await worker.exchange(
            failed=[each.report(outcome="suspended", delay=0, waits=places) for each in part]
        )
    with anyio.fail_after(240):
        while await db.fetchval("select exists (select from runtime.unsettled_waits)"):
            assert await worker.take(crowd) == []
    await insert(db, "payment.settled", {"order": 7})
    gone_on: list[Taken] = []
    with anyio.fail_after(60):
        while len(gone_on) < crowd:
            gone_on += await worker.take(crowd)
    assert {each.id for each in gone_on} == {each.id for each in taken}


async def test_k18_a_sleeper_is_told_that_something_is_due_which_a_look_at_what_is_fresh_would_not_find(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await suspended(db, worker)
    await worker.subscribe({"name": "a.one", "patterns": ["order.placed"]}, announce=["notify"])
    await worker.fall_asleep()
    heard: list[str] = []
    async with connect() as ear:
        await ear.add_listener(worker.channel, lambda *given: heard.append(given[-1]))
        await insert(db, "payment.settled", {"order": 7})
        await ear.fetchval("select 1")
    assert heard == ["due"]


async def test_g13_k18_it_goes_on_with_the_first_message_that_fits_and_once(db: Any, worker: Worker) -> None:
    first = await suspended(db, worker, payment(filter={"order": 7}))
    assert (first.attempts, await worker.take()) == (0, [])
    await insert(db, "payment.settled", {"order": 8})
    await insert(db, "payment.other", {"order": 7})
    assert await worker.take() == []
    answer = await insert(db, "payment.settled", {"order": 7.0, "more": [1]})
    await insert(db, "payment.settled", {"order": 7})
    [again] = await worker.take()
    assert (again.id, again.attempts, again.crashes, outcomes(again)) == (first.id, 0, 0, [answer])
    await worker.finish(again)
    assert await worker.take() == []
    assert await db.fetchval("select count(*) from runtime.waits") == 0


async def test_g13_k18_what_was_written_before_the_wait_began_counts(db: Any, worker: Worker) -> None:
    await insert(db, "payment.settled", "before the order")
    taken = await begun(db, worker)
    answer = await insert(db, "payment.settled", "after it")
    found = await wait(db, taken, payment(), payment(name="x", pattern="payment.*", filter="after it"))
    assert [each["id"] for each in found["outcomes"]] == [answer, answer]
    assert found["outcomes"][0]["answer"]["value"] == "after it"
    earlier = await wait(db, taken, payment(occurrence=2, since=0))
    assert earlier["outcomes"][0]["answer"]["value"] == "before the order"


async def test_g13_k18_a_writer_that_was_under_way_when_the_wait_began_is_not_missed(
    db: Any, worker: Worker, connect: Connect
) -> None:
    taken = await begun(db, worker)
    async with connect() as writer, transaction(writer) as writing:
        # It cannot see the wait, and the wait cannot see it.
        answer = await insert(writer, "payment.settled")
        assert (await wait(db, taken))["outcomes"] == [None]
        await suspend(worker, taken)
        for _ in range(10):
            await advance(db, 2)
            assert await worker.take() == []
        await writing.commit()
    assert outcomes(await gone_on(worker)) == [answer]


async def test_k18_without_the_second_look_that_writer_is_missed(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await broken(db, "K18 no second look")
    taken = await begun(db, worker)
    async with connect() as writer, transaction(writer) as writing:
        await insert(writer, "payment.settled")
        await wait(db, taken)
        await suspend(worker, taken)
        await settled_by_time(db, worker)
        await writing.commit()
    for _ in range(10):
        await advance(db, 2)
        assert await worker.take() == []


async def settled_by_time(db: Any, worker: Worker) -> None:
    with anyio.fail_after(60):
        while await db.fetchval("select exists (select from runtime.unsettled_waits)"):
            await advance(db, 2)
            assert await worker.take() == []


async def test_g13_k18_a_message_that_comes_while_the_handler_is_unwound_is_not_missed(
    db: Any, worker: Worker, connect: Connect
) -> None:
    taken = await begun(db, worker)
    await wait(db, taken)
    async with connect() as writer, transaction(writer) as writing:
        # It ends the wait of a delivery that still runs, and has not committed when that is suspended.
        answer = await insert(writer, "payment.settled")
        assert (await wait(db, taken))["outcomes"] == [None]
        await suspend(worker, taken)
        await advance(db, 2)
        assert await worker.take() == []
        await writing.commit()
    assert outcomes(await gone_on(worker)) == [answer]


async def test_g13_k18_a_writer_that_rolls_back_takes_no_answer_of_another_one_with_it(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await suspended(db, worker)
    async with connect() as writer, transaction(writer) as writing:
        await insert(writer, "payment.settled", "rolled back")
        # This one neither waits for the other nor answers beside it.
        answer = await insert(db, "payment.settled", "stays")
        assert await worker.take() == []
        await writing.rollback()
    assert outcomes(await gone_on(worker)) == [answer]


async def test_g13_k18_two_writers_that_end_two_waits_of_one_delivery_wait_for_neither(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await suspended(db, worker, payment(), payment(name="other", pattern="other.thing"))
    async with connect() as writer, transaction(writer) as writing:
        await insert(writer, "payment.settled")
        answer = await insert(db, "other.thing")
        await writing.rollback()
    assert outcomes(await gone_on(worker)) == [answer]


async def test_k18_a_stricter_writer_with_an_older_snapshot_is_refused(
    db: Any, worker: Worker, connect: Connect
) -> None:
    taken = await begun(db, worker)
    async with connect() as writer:
        await writer.execute("begin isolation level repeatable read")
        await writer.fetchval("select count(*) from consciousness_stream")
        await wait(db, taken)
        await suspend(worker, taken)
        await settled(db, worker)
        with pytest.raises(asyncpg.SerializationError):
            await insert(writer, "payment.settled")
        await writer.execute("rollback")
        await writer.execute("begin isolation level repeatable read")
        answer = await insert(writer, "payment.settled")
        await writer.execute("commit")
    assert outcomes(await gone_on(worker)) == [answer]


async def test_g13_k18_one_message_ends_any_number_of_waits(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=order.placed", "b.two=order.placed")
    for number in range(5):
        await insert(db, "order.placed", number)
    taken = await worker.take()
    assert len(taken) == 10
    for each in taken:
        await wait(db, each)
        await suspend(worker, each)
    await settled(db, worker)
    answer = await insert(db, "payment.settled")
    again: list[Taken] = []
    with anyio.fail_after(60):
        while len(again) < 10:
            again += await worker.take()
    assert {(each.id, each.subscription) for each in again} == {
        (each.id, each.subscription) for each in taken
    }
    assert [outcomes(each) for each in again] == [[answer]] * 10


async def test_g13_k18_its_time_ends_a_wait(db: Any, worker: Worker) -> None:
    await suspended(db, worker, payment(seconds=3600))
    await advance(db, 3590)
    assert await worker.take() == []
    await advance(db, 20)
    [taken] = await worker.take()
    assert (taken.attempts, taken.steps) == (0, None)
    # The time that counts is that of the first attempt.
    await db.execute("update runtime.waits set until = until - interval '1 hour'")
    assert (await wait(db, taken, payment(seconds=3600)))["outcomes"] == [{"timeout": True}]
    # A message that comes later does not change what was told.
    await insert(db, "payment.settled")
    assert (await wait(db, taken, payment(seconds=3600)))["outcomes"] == [{"timeout": True}]


async def pass_time(db: Any, seconds: float) -> None:
    """Let so much time pass, also for waits."""
    await advance(db, seconds)
    await db.execute("update runtime.waits set until = until - make_interval(secs => $1)", seconds)


@pytest.mark.parametrize("kind", [{"name": "sleep", "pattern": None}, {}], ids=["sleep", "timeout"])
async def test_g13_k18_who_takes_a_delivery_ends_what_its_time_ends(
    db: Any, worker: Worker, kind: dict[str, Any]
) -> None:
    over, later = payment(seconds=3600, **kind), payment(seconds=7200, name="later", pattern="payment.late")
    first = await suspended(db, worker, over, later)
    await pass_time(db, 3700)
    [taken] = await worker.take()
    # The handler need not ask: the outcome comes along. What goes on is asked for as before.
    assert (taken.id, taken.attempts, outcomes(taken)) == (first.id, 0, ["timeout"])
    assert await db.fetchval("select array_agg(name) from runtime.waits") == ["later"]
    await insert(db, "payment.settled")
    assert (await wait(db, taken, over, later))["outcomes"] == [{"timeout": True}, None]


async def taken_by_time_beside_a_writer(db: Any, worker: Worker, writer: Any) -> tuple[Taken, int]:
    """What was taken because its time had come, before a writer has ended that began before its wait."""
    taken = await begun(db, worker)
    async with transaction(writer) as writing:
        answer = await insert(writer, "payment.settled")
        await wait(db, taken, payment(seconds=3600))
        await suspend(worker, taken)
        for _ in range(4):
            await worker.take()
        await pass_time(db, 3700)
        taken = await gone_on(worker)
        await writing.commit()
    return taken, answer


async def test_g13_k18_who_takes_a_delivery_leaves_it_a_message_that_may_have_been_missed(
    db: Any, worker: Worker, connect: Connect
) -> None:
    async with connect() as writer:
        taken, answer = await taken_by_time_beside_a_writer(db, worker, writer)
    assert outcomes(taken) == []
    [outcome] = (await wait(db, taken, payment(seconds=3600)))["outcomes"]
    assert outcome["id"] == answer


async def taken_while_a_writer_held_its_wait(
    db: Any, worker: Worker, writer: Any, end: str
) -> tuple[Taken, int]:
    """What was taken by time, and before while a writer held its wait, which another's message passed over for that."""
    await suspended(db, worker, payment(seconds=3600))
    async with transaction(writer) as writing:
        # As who answers it does, until its own look for the delivery, which comes too late.
        await writer.execute("select from runtime.waits for update")
        await advance(db, 3700)
        [taken] = await worker.take()
        answer = await insert(db, "payment.settled")
        await writing.rollback()
    await worker.fail(taken, outcome=end)
    await pass_time(db, 3700)
    return await gone_on(worker), answer


@pytest.mark.parametrize("end", ["failed", "released"])
async def test_g13_k18_a_handler_that_ends_without_asking_is_told_of_no_time_before_a_message(
    db: Any, worker: Worker, connect: Connect, end: str
) -> None:
    async with connect() as writer:
        taken, answer = await taken_while_a_writer_held_its_wait(db, worker, writer, end)
    assert outcomes(taken) == []
    [outcome] = (await wait(db, taken, payment(seconds=3600)))["outcomes"]
    assert outcome["id"] == answer
    await worker.finish(taken)
    await settled(db, worker)


async def test_k18_without_its_mark_a_held_wait_ends_by_time_before_a_message(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await broken(db, "K18 a wait that a writer held stays settled")
    async with connect() as writer:
        taken, _answer = await taken_while_a_writer_held_its_wait(db, worker, writer, "failed")
    assert outcomes(taken) == ["timeout"]


async def test_k18_without_the_second_look_its_time_ends_a_wait_beside_a_message(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await broken(db, "K18 its time ends what a writer may have missed")
    async with connect() as writer:
        taken, _answer = await taken_by_time_beside_a_writer(db, worker, writer)
    assert outcomes(taken) == ["timeout"]


async def test_k18_without_the_fence_a_frozen_process_waits_for_its_successor(
    db: Any, worker: Worker
) -> None:
    await broken(db, "K18 a wait needs no lease")
    old = await begun(db, worker)
    await db.execute("update runtime.deliveries set visible_at = clock_timestamp()")
    await worker.take()
    assert (await wait(db, old))["held"] is True


async def test_k18_without_another_look_a_writer_that_rolls_back_takes_the_answer_along(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await broken(db, "K18 what a writer locks is not looked at again")
    await suspended(db, worker)
    async with connect() as writer, transaction(writer) as writing:
        await insert(writer, "payment.settled", "rolled back")
        await insert(db, "payment.settled", "stays")
        await writing.rollback()
    for _ in range(10):
        await advance(db, 2)
        assert await worker.take() == []


async def test_k18_the_exchange_that_suspends_a_delivery_does_not_take_it(db: Any, worker: Worker) -> None:
    taken = await begun(db, worker)
    await wait(db, taken)
    report = taken.report(outcome="suspended", delay=0, waits=[["payment.settled", "", 1]])
    assert (await worker.exchange(failed=[report], want=5, due=True)).taken == []


@pytest.mark.parametrize("end", ["failed", "later"])
async def test_g5_k18_a_retry_of_what_a_message_let_go_is_not_moved_by_a_look_that_began_before(
    db: Any, worker: Worker, connect: Connect, end: str
) -> None:
    taken = await begun(db, worker)
    await wait(db, taken)
    async with connect() as writer, transaction(writer):
        # As long as this writer is open, nobody knows whether it has the message.
        await insert(writer, "other.key")
        await suspend(worker, taken)
        assert await worker.take() == []
        await insert(db, "payment.settled")
        await worker.fail(await gone_on(worker), outcome=end, delay=3600)
    for _ in range(10):
        assert await worker.take() == []
    assert await db.fetchval("select visible_at > now() + interval '30 min' from runtime.deliveries")


async def test_k18_a_wait_of_a_frozen_process_is_refused(db: Any, worker: Worker) -> None:
    old = await begun(db, worker)
    await db.execute("update runtime.deliveries set visible_at = clock_timestamp()")
    [new] = await worker.take()
    assert await wait(db, old) == {"held": False}
    assert (await wait(db, new))["held"] is True


async def test_k18_a_suspended_delivery_takes_no_slot_of_its_subscription(db: Any, worker: Worker) -> None:
    await suspended(db, worker, concurrency_total=1)
    await insert(db, "order.placed", 2)
    [other] = await worker.take()
    assert other.value == 2
    await worker.finish(other)


async def test_g4_k18_a_suspended_delivery_holds_its_ordered_key_and_no_other(
    db: Any, worker: Worker
) -> None:
    await suspended(db, worker, ordered=True)
    behind = await insert(db, "order.placed", 2)
    assert await worker.take() == []
    await insert(db, "payment.settled")
    [first] = await worker.take()
    assert first.id < behind
    await worker.finish(first)
    assert [each.id for each in await worker.take()] == [behind]


async def test_k18_a_suspended_delivery_is_cancelled_at_once_and_its_waits_end(
    db: Any, worker: Worker
) -> None:
    taken = await suspended(db, worker)
    answer = await db.fetchval("select stream_cancel($1, outcome => 'done')", taken.id)
    assert [each["state"] for each in answer["deliveries"]] == ["ended"]
    assert await db.fetchval("select count(*) from runtime.waits") == 0
    await insert(db, "payment.settled")
    assert await worker.take() == []


async def test_k18_a_handler_that_has_begun_goes_on_though_its_message_expires_meanwhile(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=order.placed")
    sends = "select stream_send(jsonb_build_object('key', 'order.placed', 'value', 1, 'expires_in', 60))"
    await db.fetchval(sends)
    [taken] = await worker.take()
    await wait(db, taken)
    await suspend(worker, taken)
    await settled(db, worker)
    await db.fetchval(sends)
    await advance(db, 120)
    await insert(db, "payment.settled")
    # The other one has not begun.
    assert [each.id for each in await worker.take()] == [taken.id]
    assert await db.fetchval("select count(*) from runtime.runs where outcome = 'expired'") == 1


async def test_k18_what_a_handler_ended_without_is_forgotten(db: Any, worker: Worker) -> None:
    taken = await begun(db, worker)
    await wait(db, taken)
    await worker.finish(taken)
    await insert(db, "order.unrelated")
    await db.fetchval("select stream_prune(0)")
    assert await db.fetchval("select count(*) from runtime.waits") == 0


async def test_k18_what_a_suspended_handler_waits_for_is_not_told_as_unheard(db: Any, worker: Worker) -> None:
    await suspended(db, worker)
    send = "select stream_send(jsonb_build_object('key', $1::text, 'value', 1))"
    assert "unheard" in str(await db.fetchval(send, "payment.unheard"))
    assert "unheard" not in str(await db.fetchval(send, "payment.settled"))


async def test_k18_what_waits_is_told(db: Any, worker: Worker) -> None:
    taken = await suspended(db, worker, payment(filter={"order": 7}, seconds=3600))
    [told] = await db.fetchval("select stream_waits()")
    assert (told["message"], told["subscription"], told["pattern"], told["where"], told["suspended"]) == (
        taken.id, "a.one", "payment.settled", {"order": 7}, True,
    )  # fmt: skip
    story = await db.fetchval("select stream_trace($1)", taken.id)
    [handled] = story["messages"][0]["handled"] if isinstance(story, dict) else story[0]["handled"]
    assert handled["state"] == "suspended"


async def test_k18_what_is_suspended_is_counted_apart_with_what_it_waits_for(db: Any, worker: Worker) -> None:
    async def told() -> list[Any]:
        [subscription] = (await db.fetchval("select stream_stats()"))["subscriptions"]
        return [subscription[name] for name in ("suspended", "scheduled", "awaited", "lag_seconds")]

    # Of two waits the one for a time is no sign that the other is over.
    sleep = {"name": "sleep", "key": "", "occurrence": 1, "pattern": None, "seconds": 3600.0}
    await suspended(db, worker, payment(), sleep)
    awaited = [{"pattern": "payment.settled", "count": 1}, {"pattern": None, "count": 1}]
    assert await told() == [1, 0, awaited, None]
    await insert(db, "payment.settled", 1)
    counted = await told()
    assert (counted[:3], counted[3] is None) == ([0, 1, awaited[1:]], False)


async def test_s8_k18_no_inserted_row_decides(db: Any, worker: Worker) -> None:
    request = await insert(db, "approval.requested", {"title": "May I?"})
    asked = {"name": "approval.decided", "key": str(request), "occurrence": 1, "pattern": "approval.decided"}
    await suspended(db, worker, {**asked, "filter": {"request": request}})
    forged = {"request": request, "approved": True, "by": "ada"}
    await insert(db, "approval.decided", forged, parent_id=request)
    with pytest.raises(asyncpg.InvalidParameterValueError, match="reserved"):
        await insert(db, "approval.decided", forged, parent_id=request, dedup_key=f"decision {request}")
    assert await worker.take() == []
    decided = await db.fetchval("select stream_decide($1, false)", request)
    assert (decided["decided"], decided["decision"]["approved"]) == (True, False)
    [again] = await worker.take()
    assert outcomes(again) == [decided["decision"]["id"]]


async def test_k18_a_request_is_listed_for_the_handler_that_asked_alone(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.ask=order.placed", "a.remind=approval.requested")
    order = await insert(db, "order.placed")
    [asking] = await worker.take()
    request = await insert(db, "approval.requested", {"title": "Send it?"}, parent_id=order)
    [reminding] = await worker.take()
    decision = {**payment(filter={"request": request}), "pattern": "approval.decided"}
    for each in (asking, reminding):
        await wait(db, each, decision)
    listed = await db.fetchval("select stream_approvals()")
    assert [(each["request"], each["subscription"]) for each in listed] == [(request, "a.ask")]


@pytest.mark.parametrize(
    ("filter_", "value", "fits"),
    [
        ({"a": 1}, {"a": 1.0, "b": 2}, True), ({"a": "1"}, {"a": 1}, False),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, True),
        ({"a": True}, {"a": True}, True), ({"a": None}, {"a": None}, True), ({"a": None}, {}, False),
        ([1], [2, 1], True), (7, 7, True), (7, [7], True), ({}, {"a": 1}, True), ({}, 1, False), (None, None, True),
        ({"a": "x" * 500}, {"a": "x" * 500}, True), ({"a": "x" * 500}, {"a": "x" * 499 + "y"}, False),
        ({"é" * 200: 1}, {"é" * 200: 1}, True), ({"a": 10**30, "b": [1]}, {"b": [1, 2], "a": 10**30}, True),
    ],
)  # fmt: skip
async def test_k18_a_filter_means_what_the_value_contains(
    db: Any, worker: Worker, filter_: Any, value: Any, fits: bool
) -> None:
    await suspended(db, worker, payment(filter=filter_))
    await insert(db, "payment.settled", value)
    assert bool(await worker.take()) is fits


async def asking(db: Any, taken: Taken) -> tuple[dict[str, Any], int]:
    """The wait of a delivery that has asked five seconds ago, and another request of the same asker."""
    mine, other = await insert(db, "price.wanted", "pen"), await insert(db, "price.wanted", "ink")
    await db.fetchval(
        "select stream_step($1, $2, $3, name => 'ask price.wanted', key => '1', occurrence => 1, value => $4)",
        taken.id, taken.subscription, taken.lease, {"request": mine},
    )  # fmt: skip
    await db.execute("update runtime.steps set created_at = created_at - interval '5 s'")
    asked = {"name": "ask price.wanted", "key": "1", "occurrence": 1, "pattern": "answer.me", "parent": mine}
    return asked | {"since": mine, "seen": [], "seconds": 3600.0}, other


async def test_g13_k18_a_wait_for_an_answer_ends_with_the_answers_to_its_request_alone(
    db: Any, worker: Worker
) -> None:
    taken = await begun(db, worker)
    asked, other = await asking(db, taken)
    mine = asked["parent"]
    await insert(db, "answer.me", 1, parent_id=other)
    assert (await wait(db, taken, asked))["outcomes"] == [None]
    await suspend(worker, taken, asked)
    await settled(db, worker)
    # An answer to another request of the same asker, and what is none.
    await insert(db, "answer.me", 1, parent_id=other)
    await insert(db, "answer.you", 1, parent_id=mine)
    await insert(db, "answer.me", 1)
    assert await worker.take() == []
    [told] = await db.fetchval("select stream_waits()")
    assert (told["pattern"], told["parent"], told["suspended"]) == ("answer.me", mine, True)
    first = await insert(db, "answer.me", 2, parent_id=mine)
    [again] = await worker.take()
    assert outcomes(again) == [first]
    # The same place waits for the next one, and its time runs from the step.
    second = {**asked, "seen": [first]}
    assert (await wait(db, again, second))["outcomes"] == [None]
    await suspend(worker, again, second)
    await settled(db, worker)
    assert await db.fetchval(
        "select until - s.created_at = interval '1 hour' from runtime.waits join runtime.steps s using (message_id)"
    )
    # No message tells of a handler that ends without an answer: it is looked for after some minutes.
    await advance(db, 900)
    [looking] = await worker.take()
    assert outcomes(looking) == []
    assert (await wait(db, looking, second))["outcomes"] == [None]
    last = await insert(db, "answer.me", 3, parent_id=mine)
    assert [each["id"] for each in (await wait(db, looking, second))["outcomes"]] == [last]


@pytest.mark.parametrize(
    "broken_rule", ["K18 the answer to another request counts", "K18 an answer that was seen counts again"]
)
async def test_k18_without_its_rule_a_wait_for_an_answer_ends_too_early(
    db: Any, worker: Worker, broken_rule: str
) -> None:
    await broken(db, broken_rule)
    taken = await begun(db, worker)
    asked, other = await asking(db, taken)
    await insert(db, "answer.me", 1, parent_id=other)
    seen = await insert(db, "answer.me", 1, parent_id=asked["parent"])
    found = await wait(db, taken, {**asked, "seen": [seen]})
    assert found["outcomes"][0]["id"] in (seen, seen - 1)


async def test_g13_k18_an_answer_that_is_committed_after_a_later_one_is_not_missed(
    db: Any, worker: Worker, connect: Connect
) -> None:
    taken = await begun(db, worker)
    asked, _ = await asking(db, taken)
    async with connect() as writer, transaction(writer) as writing:
        slow = await insert(writer, "answer.me", 1, parent_id=asked["parent"])
        quick = await insert(db, "answer.me", 2, parent_id=asked["parent"])
        assert (await wait(db, taken, asked))["outcomes"][0]["id"] == quick
        more = {**asked, "seen": [quick]}
        assert (await wait(db, taken, more))["outcomes"] == [None]
        await suspend(worker, taken, more)
        await writing.commit()
    assert outcomes(await gone_on(worker)) == [slow]
