"""K17: what a pinned version of a handler has begun goes on with workers of that version alone."""

from typing import Any

import pytest

from tests.kernel.driver import Taken, Worker, advance, insert
from tests.kernel.ears import ears
from tests.kernel.mutations import MUTATIONS
from tests.kernel.test_k17_steps import names
from tests.kernel.test_k18_waits import settled, suspend, wait

pytestmark = pytest.mark.anyio


async def serving(
    db: Any, version: str | None, *, pin: bool = True, announce: Any = (), **options: Any
) -> Worker:
    """A worker whose handler has this version."""
    worker = Worker(db)
    declared = {"name": "a.one", "patterns": ["order.*"], "version": version, "pin": pin, **options}
    await worker.subscribe(declared, announce=announce)
    return worker


async def begun(db: Any, worker: Worker, key: str = "order.placed") -> Taken:
    """A delivery of which this worker has kept a step."""
    await insert(db, key, 1)
    [taken] = await worker.take()
    await db.fetchval(
        "select stream_step($1, $2, $3, 'charge', '', 1, '7', '1')", taken.id, taken.subscription, taken.lease
    )
    return taken


async def due(db: Any, versions: dict[str, str] | None) -> int:
    """How many deliveries are due for these versions."""
    answer = await db.fetchval("select stream_due('{a.one}', $1)", versions)
    return int(answer["due"])


async def ids(worker: Worker, **options: Any) -> list[int]:
    """What it is given, and gives back untouched."""
    taken = await worker.take(**options)
    await worker.fail(*taken, outcome="released")
    return [each.id for each in taken]


async def test_k17_only_its_version_goes_on_with_what_it_has_begun(db: Any) -> None:
    old = await serving(db, "1")
    taken = await begun(db, old)
    new, unpinned = await serving(db, "2"), await serving(db, None, pin=False)
    for outcome in ("failed", "released", "later"):
        await old.fail(taken, outcome=outcome)
        for other in (new, unpinned):
            look = await other.exchange(want=1, due=True)
            # Nothing is due for them, so that they neither look again at once nor set a timer.
            assert (look.taken, look.more["next_due"], look.more["poison"]) == ([], None, False)
        # Nor does a drain of another version wait for it: it would wait for ever.
        assert [await due(db, versions) for versions in (None, {"a.one": "1"}, {"a.one": "2"}, {})] == [
            1,
            1,
            0,
            0,
        ]
        [taken] = await old.take()
        assert [(name, value) for name, _, _, value in names(taken)] == [("charge", 7)]
    # The crash is anybody's to count. After the second one it comes alone.
    for _ in range(2):
        await advance(db, 31)
        assert await ids(new) == []
        taken, *_ = [*await old.take(), *await old.take(alone=True)]
    await old.fail(taken, outcome="later", delay=0)
    look = await old.exchange(want=1, due=True)
    assert (look.taken, look.more["poison"]) == ([], True)
    assert (await ids(new, alone=True), await ids(old, alone=True)) == ([], [taken.id])
    # What nobody has begun is everybody's.
    fresh = await insert(db, "order.placed", 2)
    assert await ids(new) == await ids(unpinned) == await ids(old) == [fresh]


async def test_k17_without_the_lanes_another_version_goes_on_with_it(db: Any) -> None:
    [mutation] = [each for each in MUTATIONS if each.name == "K17 takes what another version has begun"]
    await mutation.carry_out(db)
    old = await serving(db, "1")
    taken = await begun(db, old)
    await old.fail(taken)
    assert await ids(await serving(db, "2")) == [taken.id]


async def test_k17_k18_a_suspended_delivery_wakes_a_worker_of_its_version(db: Any) -> None:
    old = await serving(db, "1", announce=["notify"])
    others = [await serving(db, "2", announce=["notify"]) for _ in range(4)]
    await insert(db, "order.placed", 1)
    [taken] = await old.take()
    assert (await wait(db, taken))["outcomes"] == [None]
    await suspend(old, taken)
    await settled(db, old)
    for worker in (old, *others):
        await worker.fall_asleep()
    hearing = await ears(db, old, *others)
    await insert(db, "payment.settled")
    assert old.channel in await hearing.heard()
    assert [await ids(each) for each in others] == [[], [], [], []]
    [again] = await old.take()
    assert again.id == taken.id


async def test_k17_k9_an_ordered_key_waits_for_the_version_that_has_begun_its_head(db: Any) -> None:
    old = await serving(db, "1", ordered=True)
    taken = await begun(db, old)
    behind = await insert(db, "order.placed", 2)
    other = await insert(db, "order.cancelled", 3)
    await old.fail(taken)
    new = await serving(db, "2", ordered=True)
    assert [each.id for each in await new.take()] == [other]
    [again] = await old.take()
    assert again.id == taken.id
    await old.finish(again)
    assert [each.id for each in await new.take()] == [behind]


async def test_k17_work_that_waits_for_a_version_nobody_runs_is_told_and_a_redrive_frees_it(db: Any) -> None:
    async def told() -> Any:
        stats = await db.fetchval("select stream_stats()")
        return stats["subscriptions"][0]["held_back"], [
            each for each in stats["warnings"] if "version 1" in each
        ]

    old = await serving(db, "1")
    taken = await begun(db, old)
    await old.fail(taken)
    assert await told() == ([], [])
    await db.fetchval("select stream_leave($1)", old.id)
    new = await serving(db, "2")
    held_back, warnings = await told()
    assert (held_back, len(warnings)) == ([{"version": "1", "count": 1}], 1)
    examined = await db.fetchval("select stream_examine()")
    assert examined["held_back"] == [{"subscription": "a.one", "version": "1", "count": 1}]
    await db.fetchval("select stream_cancel($1)", taken.id)
    await db.fetchval("select stream_redrive()")
    [again] = await new.take()
    assert [(name, value) for name, _, _, value in names(again)] == [("charge", 7)]


async def test_k17_upkeep_forgets_a_version_that_nobody_has_any_more(db: Any) -> None:
    async def versions() -> Any:
        await db.fetchval("select stream_maintain($1)", new.id)
        return await db.fetchval("select array_agg(version order by version) from runtime.pins")

    old = await serving(db, "1")
    taken = await begun(db, old)
    await old.fail(taken)
    await db.execute("update runtime.workers set seen_at = seen_at - interval '1 h'")
    new = await serving(db, "2")
    await db.execute("update runtime.pins set declared_at = declared_at - interval '2 days'")
    await db.fetchval("select stream_leave($1)", old.id)
    assert await versions() == ["1", "2"]
    await db.fetchval("select stream_cancel($1)", taken.id)
    assert await versions() == ["2"]
