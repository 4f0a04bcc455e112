"""G1: does a committed message reach every subscription that matches?"""

from typing import Any

import pytest

from tests.kernel.driver import Worker, insert, send

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
