"""K11: a message sent again under its dedup_key is stored once, and senders never wait for each other in a circle."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, advance, insert
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
