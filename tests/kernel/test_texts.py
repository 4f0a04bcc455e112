"""Texts: written on by whoever has the delivery, begun anew by the next attempt, and read from any character on."""

from typing import Any
from uuid import UUID

import pytest

from tests.kernel.driver import Taken, Worker, insert
from tests.kernel.test_permissions import acting_as

pytestmark = pytest.mark.anyio


async def begin(db: Any, taken: Taken, attempt: int = 1) -> Any:
    return await db.fetchval(
        "select stream_begin_text($1, $2, $3, 'answer', $4)",
        taken.id, taken.subscription, UUID(taken.lease), attempt,
    )  # fmt: skip


async def write(db: Any, taken: Taken, start: int, text: str, beginning: int = 1, **more: str) -> bool:
    piece = taken.report(name="answer", beginning=beginning, start=start, text=text, **more)
    answer = await db.fetchval("select stream_write_texts($1)", [{**piece, "lease": str(taken.lease)}])
    assert answer["workers"] == 1
    return bool(answer["kept"][0])


async def follow(db: Any, message: int, since: int = 0, beginning: int | None = None) -> list[Any]:
    found = await db.fetchval("select stream_follow($1, 'answer', $2, $3)", message, since, beginning)
    return [found[name] for name in ("beginning", "offset", "text", "state", "over")]


async def test_a_text_is_written_by_who_has_the_delivery_and_read_from_any_character_on(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    number = await insert(db, "task.output", 1)
    [old] = await worker.take()
    assert await follow(db, number) == [0, 0, "", None, False]
    assert await begin(db, old) == {"held": True, "beginning": 1, "text": None}
    assert await write(db, old, 0, "Grüße ")
    assert await write(db, old, 6, "🌍 all")
    # Sent again after a lost answer; and with a hole, which no worker leaves.
    assert await write(db, old, 6, "🌍 all")
    assert not await write(db, old, 20, "lost")
    whole = "Grüße 🌍 all"
    for since in range(len(whole) + 3):
        assert await follow(db, number, since, 1) == [1, since, whole[since:], "open", False]
    # The lease has run out: the next attempt begins the text anew, and the first one writes no more.
    await db.execute("update runtime.deliveries set visible_at = clock_timestamp()")
    [new] = await worker.take()
    assert not await write(db, old, 11, " of you")
    assert await begin(db, old) == {"held": False}
    assert await begin(db, new, 2) == {"held": True, "beginning": 2, "text": None}
    assert not await write(db, old, 0, "Grüße ")
    assert await write(db, new, 0, "Hi all", 2)
    assert await follow(db, number, 3, 1) == [2, 0, "Hi all", "open", False]
    assert await follow(db, number, 3, 2) == [2, 3, "all", "open", False]
    # Its last words may come after its end.
    await worker.finish(new)
    assert await write(db, new, 6, "!", 2, state="closed")
    assert await write(db, new, 6, "!", 2, state="closed")
    assert not await write(db, new, 7, "!", 2)
    assert await follow(db, number, 6, 2) == [2, 6, "!", "closed", True]
    await db.fetchval("select stream_replay('a.one')")
    assert await follow(db, number, 7, 2) == [2, 7, "", "broken", False]
    await worker.finish(*await worker.take())
    await db.fetchval("select stream_prune(0)")
    for table in ("stream_texts", "stream_text_parts"):
        assert await db.fetchval(f"select count(*) from {table}") == 0


async def test_an_attempt_that_goes_on_after_a_wait_is_told_its_text_and_a_dead_letter_s_is_broken(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.one=task.output")
    number = await insert(db, "task.output", 1)
    for state, kept in (("suspended", None), ("closed", "whole"), ("open", "whole")):
        [taken] = await worker.take()
        assert await begin(db, taken) == {"held": True, "beginning": 1, "text": kept}
        assert kept or await write(db, taken, 0, "whole")
        assert await write(db, taken, 5, "", state=state)
        # Given back, as after a wait; killed within the text at last.
        await worker.fail(taken, outcome="released")
    [taken] = await worker.take()
    begun = await begin(db, taken)
    assert begun == {"held": True, "beginning": 2, "text": None}
    await worker.fail(taken, outcome="dead")
    assert await follow(db, number) == [2, 0, "", "broken", True]


async def test_who_may_read_a_message_may_read_its_texts(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.one=task.output")
    hers, his = [await insert(db, "task.output", who) for who in ("ada", "bob")]
    for taken in await worker.take():
        await begin(db, taken)
        await write(db, taken, 0, f"for {taken.id}")
    await db.execute(
        "grant select (id, value) on consciousness_stream to authenticated; "
        "create policy own on consciousness_stream for select to authenticated "
        "using (value #>> '{}' = current_setting('request.jwt.claims')::json ->> 'sub')"
    )
    async with acting_as(db, "authenticated", sub="ada"):
        assert await follow(db, hers) == [1, 0, f"for {hers}", "open", None]
        assert await follow(db, his) == [0, 0, "", None, None]
        assert await db.fetchval("select array_agg(message_id) from stream_text_parts") == [hers]
