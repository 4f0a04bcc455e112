"""G1: does a committed message reach every subscription that matches?"""

from typing import Any

import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Worker, insert, send
from tests.kernel.schedule import transaction

pytestmark = pytest.mark.anyio


async def test_g1_each_subscription_gets_each_message_once(db: Any, worker: Worker) -> None:
    numbers = await worker.subscribe("a.exact=task.output", "b.wild=task.*,task.>", "c.other=site.>")
    first = await insert(db, "task.output", {"n": 1})
    second, third = await send(db, ("task.output", 2), ("task.other", 3))
    taken = await worker.take()
    assert sorted((each.subscription, each.id) for each in taken) == sorted(
        [(numbers["a.exact"], first), (numbers["a.exact"], second)]
        + [(numbers["b.wild"], each) for each in (first, second, third)]
    )
    assert {each.id: each.value for each in taken} == {first: {"n": 1}, second: 2, third: 3}
    await worker.finish(*taken)
    assert await worker.take() == []


async def test_g1_what_is_written_while_nobody_is_up_is_found_on_return(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await worker.subscribe("a.exact=task.output", "b.wild=task.*")
    await db.fetchval("select stream_leave($1)", worker.id)
    await worker.connection.close()
    await db.execute(
        "insert into consciousness_stream (key, value) select 'task.output', '1' from generate_series(1, 1000)"
    )
    async with connect() as connection:
        successor = Worker(connection)
        await successor.subscribe("a.exact=task.output", "b.wild=task.*", "c.new=task.output")
        taken = []
        while batch := await successor.take(150):
            taken += batch
            await successor.finish(*batch)
    assert len(taken) == len({(each.id, each.subscription) for each in taken}) == 2000
    assert await db.fetchval("select count(*) from runtime.deliveries") == 0
    assert await db.fetchval("select bool_and(processed) from consciousness_stream")


async def test_g1_a_rolled_back_message_reaches_nobody(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.exact=task.output")
    async with transaction(db) as writing:
        await insert(db, "task.output", "never")
        assert await worker.take() == []
        await writing.rollback()
    async with transaction(db):
        message = await insert(db, "task.output", "later")
        assert await worker.take() == []
    assert [each.id for each in await worker.take()] == [message]
