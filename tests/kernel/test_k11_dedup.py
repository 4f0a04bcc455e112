"""K11: a message sent again under its dedup_key is stored once, and senders never wait for each other in a circle."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, advance, insert, send
from tests.kernel.schedule import started, transaction, until_waiting
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio

A_WEEK = 7 * 86400


def draft(dedup_key: str, **more: Any) -> dict[str, Any]:
    """A message under a dedup_key."""
    return {"key": "task.output", "value": dedup_key, "dedup_key": dedup_key, **more}


async def outcomes(connection: Any, *drafts: dict[str, Any]) -> list[tuple[int, bool]]:
    """What `stream_send` says of each: its id and whether it was a duplicate."""
    rows = await connection.fetchval("select public.stream_send($1)", list(drafts))
    return [(row["id"], row["duplicate"]) for row in rows]


async def stored(db: Any) -> list[str]:
    """The dedup_keys in the table."""
    rows = await db.fetch(
        "select dedup_key from consciousness_stream where dedup_key is not null order by id"
    )
    return [row["dedup_key"] for row in rows]


async def test_g10_k11_a_message_sent_again_is_stored_once(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    ((first, duplicate),) = await outcomes(db, draft("x"))
    assert not duplicate
    assert await outcomes(db, draft("x", value="changed")) == [(first, True)]
    answer = await outcomes(db, draft("y"), {"key": "task.output", "value": 0}, draft("x"), draft("y"))
    (second, third) = (answer[0][0], answer[1][0])
    assert first < second < third
    assert answer == [(second, False), (third, False), (first, True), (second, True)]
    taken = await worker.take()
    assert [each.id for each in taken] == [first, second, third]
    # What a handler emits is no exception, and no reason to refuse its work.
    assert (await worker.finish(taken[0], emits=[draft("x"), draft("z"), draft("z")])).refused == set()
    assert await stored(db) == ["x", "y", "z"]


async def test_g10_k11_a_plain_insert_fails_and_names_what_would_not(db: Any) -> None:
    await insert(db, "task.output", 1, dedup_key="x")
    for statement in (
        "insert into consciousness_stream (key, dedup_key) values ('task.output', 'x')",
        "insert into consciousness_stream (key, dedup_key) values ('task.output', 'y'), ('task.output', 'y')",
    ):
        with pytest.raises(asyncpg.UniqueViolationError, match="dedup_key") as caught:
            await db.execute(statement)
        assert "stream_send" in str(caught.value.hint)
    assert await stored(db) == ["x"]
    assert [duplicate for _, duplicate in await outcomes(db, draft("x"), draft("y"))] == [True, False]


async def test_g10_k11_also_after_the_first_was_pruned_until_the_retention_has_passed(db: Any) -> None:
    ((first, _),) = await outcomes(db, draft("x"))
    await advance(db, A_WEEK - 60)
    assert (await db.fetchval("select stream_prune(60)"))["pruned"] == 1
    assert await outcomes(db, draft("x")) == [(first, True)]
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(db, "task.output", 1, dedup_key="x")
    await advance(db, 61)
    ((second, duplicate),) = await outcomes(db, draft("x"))
    assert (second > first, duplicate) == (True, False)
    assert await outcomes(db, draft("x")) == [(second, True)]
    await advance(db, A_WEEK + 1)
    await insert(db, "task.output", 1, dedup_key="x")
    assert await stored(db) == ["x", "x"]


async def test_k11_without_it_a_key_would_be_forgotten_with_its_message(db: Any) -> None:
    counting = "get diagnostics pruned = row_count;"
    forgetting = "delete from runtime.dedup d where d.message_id = any (batch);"
    await switch_off(db, "stream_prune", counting, f"{counting} {forgetting}")
    await outcomes(db, draft("x"))
    await advance(db, 61)
    await db.fetchval("select stream_prune(60)")
    assert [duplicate for _, duplicate in await outcomes(db, draft("x"))] == [False]


@pytest.mark.parametrize("first_commits", [True, False])
async def test_g10_k11_a_second_writer_waits_for_what_becomes_of_the_first(
    db: Any, connect: Connect, first_commits: bool
) -> None:
    async with connect() as one, connect() as two, connect() as three, transaction(one) as writing:
        ((first, _),) = await outcomes(one, draft("x"))
        async with (
            started(lambda: outcomes(two, draft("x"))) as sending,
            started(lambda: insert(three, "task.output", 1, dedup_key="y")) as inserting,
        ):
            await until_waiting(db, two)
            await inserting.outcome()
            await (writing.commit() if first_commits else writing.rollback())
            ((second, duplicate),) = await sending.outcome()
    assert (second == first, duplicate) == (first_commits, first_commits)
    assert await stored(db) == (["x", "y"] if first_commits else ["y", "x"])


async def test_g10_k11_a_plain_insert_waits_too_and_then_fails(db: Any, connect: Connect) -> None:
    async with connect() as one, connect() as two, transaction(one) as writing:
        await outcomes(one, draft("x"))
        async with started(lambda: insert(two, "task.output", 1, dedup_key="x")) as inserting:
            await until_waiting(db, two)
            await writing.commit()
            with pytest.raises(asyncpg.UniqueViolationError, match="stored before"):
                await inserting.outcome()


async def send_in_opposite_order(db: Any, connect: Connect, orders: Sequence[str]) -> int:
    """Two batches of the keys a, m and z meet while a third transaction holds m; returns how many were stored."""
    async with connect() as holder, connect() as one, connect() as two, transaction(holder) as holding:
        await outcomes(holder, draft("m"))
        async with (
            started(lambda: outcomes(one, *map(draft, orders[0]))) as first,
            started(lambda: outcomes(two, *map(draft, orders[1]))) as second,
        ):
            await until_waiting(db, one)
            await until_waiting(db, two)
            await holding.rollback()
            answers = [await first.outcome(), await second.outcome()]
    return sum(not duplicate for answer in answers for _, duplicate in answer)


async def test_k11_batches_in_opposite_order_do_not_deadlock(db: Any, connect: Connect) -> None:
    assert await send_in_opposite_order(db, connect, ["amz", "zma"]) == 3


async def test_k11_without_the_order_of_keys_they_do(db: Any, connect: Connect) -> None:
    await switch_off(
        db, "runtime.reserve", "from asked a order by a.dedup_key",
        "from asked a order by (select min(o.n) from jsonb_array_elements(messages) with ordinality as o (m, n) "
        "where o.m ->> 'dedup_key' = a.dedup_key)",
    )  # fmt: skip
    with pytest.raises(asyncpg.DeadlockDetectedError):
        await send_in_opposite_order(db, connect, ["amz", "zma"])


RESERVED = [
    "tick shop.daily 2026-12-01T00:00:00+00:00", "answer 1 1", "answer 999 1", "failed 1 1", f"ask 1 {'0' * 64}",
    "webhook shop msg_1", "webhook shop:eu msg_1", "tick ", "webhook ",
]  # fmt: skip


@pytest.mark.parametrize("dedup_key", RESERVED)
async def test_s3_a_plain_insert_takes_no_key_of_the_runtime(db: Any, dedup_key: str) -> None:
    for rows in ("($1, $2)", "('task.output', 'x'), ($1, $2)"):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="is reserved for the runtime"):
            await db.execute(
                f"insert into consciousness_stream (key, dedup_key) values {rows}", "task.output", dedup_key
            )
    assert await stored(db) == []
    assert await db.fetchval("select count(*) from runtime.dedup") == 0


@pytest.mark.parametrize("dedup_key", RESERVED)
async def test_s3_neither_does_a_plain_insert_of_a_signed_in_user(db: Any, dedup_key: str) -> None:
    statement = "insert into consciousness_stream (key, dedup_key) values ('question.asked', $1)"
    async with transaction(db) as undone:
        await db.execute("grant insert (key, value, dedup_key) on consciousness_stream to authenticated")
        await db.execute(
            "create policy s3 on consciousness_stream for insert to authenticated with check (true)"
        )
        await db.execute("set local role authenticated")
        await db.execute(statement, "mine")
        with pytest.raises(asyncpg.InvalidParameterValueError, match="is reserved for the runtime"):
            await db.execute(statement, dedup_key)
        await undone.rollback()


@pytest.mark.parametrize("dedup_key", ["tick a.b x", "answer 1 1", "failed 1 1"])
async def test_s3_stream_send_takes_no_key_of_a_tick_or_an_answer(db: Any, dedup_key: str) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="is reserved for the runtime"):
        await outcomes(db, draft("fine"), draft(dedup_key))
    assert await stored(db) == []


@pytest.mark.parametrize(
    "dedup_key", ["ask 1 x", "webhook shop msg_1", "ticket 7", "answers", "webhook:shop:1"]
)
async def test_s3_stream_send_takes_what_requests_webhooks_and_people_need(db: Any, dedup_key: str) -> None:
    ((first, duplicate),) = await outcomes(db, draft(dedup_key))
    assert not duplicate
    assert await outcomes(db, draft(dedup_key)) == [(first, True)]


async def test_s3_an_attempt_takes_the_key_of_its_own_answer_alone(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output", "a.two=task.output")
    (number,) = await send(db, {"key": "task.output"})
    mine, other = await worker.take()
    for dedup_key in (
        f"answer {number} {other.subscription}", f"answer {number + 1} {mine.subscription}", f"answer {number}",
        f"failed {number} {mine.subscription}", "tick a.b x", f"ask {number} x", "webhook shop msg_1",
    ):  # fmt: skip
        with pytest.raises(asyncpg.InvalidParameterValueError, match="is reserved for the runtime"):
            await worker.finish(mine, emits=[draft("fine"), draft(dedup_key)])
    own = f"answer {number} {mine.subscription}"
    assert (await worker.finish(mine, emits=[draft("fine"), draft(own)])).refused == set()
    assert await stored(db) == ["fine", own]


async def test_s3_no_writer_makes_a_tick_vanish(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=tick.came")
    timers = [{"name": "a.one", "key": "tick.came", "spec": "every minute", "missed": "one"}]
    said = await db.fetchval("select public.stream_schedule($1, $2)", worker.id, timers)
    after = said["schedules"]["a.one"]["last_slot"]
    slot = said["now"]
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await insert(db, "task.output", 1, dedup_key=f"tick a.one {slot}")
    ticked = await db.fetchval(
        "select public.stream_tick('a.one', 'every minute', $1::text::timestamptz, $2::text::timestamptz, $3)",
        after, slot, [{"slot": slot, "missed": 0}],
    )  # fmt: skip
    assert ticked["current"]
    assert len(await worker.take()) == 1
