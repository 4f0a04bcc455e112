"""Requests in the kernel: who is asked, what has come, who is told, and what a dead letter answers."""

import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.kernel.conftest import Connect
from tests.kernel.driver import Taken, Worker, insert, send
from tests.kernel.ears import ears

pytestmark = pytest.mark.anyio


def request(key: str = "k", requester: UUID | None = None, **more: Any) -> dict[str, Any]:
    """A message that is a request."""
    headers = {"reply_to": f"answer.{requester or uuid4()}", "reachable_by": ["notify"]}
    return {"key": key, "value": 1, "headers": headers, **more}


async def answers(db: Any, *requests: int) -> list[dict[str, Any]]:
    """What has come of these."""
    found: list[dict[str, Any]] = await db.fetchval("select public.stream_answers($1)", list(requests))
    return found


def answer(taken: Taken, reply_to: str, value: Any = "yes", handler: str = "a.b") -> dict[str, Any]:
    """What a worker emits as the answer of a handler."""
    return {
        "key": reply_to, "value": value, "dedup_key": f"answer {taken.id} {taken.subscription}",
        "headers": {"answers": taken.id, "handler": handler},
    }  # fmt: skip


async def test_an_answer_is_there_with_the_end_of_its_delivery_and_once(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.b=k")
    draft = request()
    reply_to = draft["headers"]["reply_to"]
    (number,) = await send(db, draft)
    (found,) = await answers(db, number)
    assert (found["request"], found["reply_to"]) == (number, reply_to)
    assert (found["listeners"], found["waiting"], found["handled"], found["answers"]) == (1, 1, False, [])
    (taken,) = await worker.take()
    await worker.finish(taken, emits=[answer(taken, reply_to)])
    (found,) = await answers(db, number, number)
    assert (found["waiting"], found["handled"]) == (0, True)
    assert [(each["value"], each["parent_id"], each["agent"]) for each in found["answers"]] == [
        ("yes", number, "a")
    ]
    await db.fetchval("select public.stream_replay('a.b')")
    (again,) = await worker.take()
    await worker.finish(again, emits=[answer(again, reply_to, "no")])
    (found,) = await answers(db, number)
    assert [each["value"] for each in found["answers"]] == ["yes"]
    (unheard,) = await answers(db, *await send(db, request("nobody.here")))
    assert (unheard["listeners"], unheard["waiting"]) == (0, 0)


@pytest.mark.parametrize("end", ["attempts", "rejected", "crashes", "blocking"])
async def test_g5_a_dead_letter_answers_its_request_in_the_same_transaction(
    db: Any, worker: Worker, end: str
) -> None:
    blocks = {"ordered": True, "dead_blocks": True} if end == "blocking" else {}
    await worker.subscribe({"name": "a.b", "patterns": ["k"], "max_attempts": 2, "max_crashes": 1, **blocks})
    (number,) = await send(db, request(correlation_id="c"))
    taken = await worker.take()
    if end == "attempts":
        await worker.fail(*taken, error="KeyError: one")
        (found,) = await answers(db, number)
        assert (found["waiting"], found["answers"]) == (1, [])
        await worker.fail(*await worker.take(), error="KeyError: two")
    elif end == "crashes":
        await db.execute("update runtime.deliveries set visible_at = clock_timestamp() - interval '1 s'")
        assert await worker.take() == []
    else:
        await worker.fail(*taken, outcome="dead", reason="rejected", error="Reject: none left")
    reason, error = {
        "attempts": ("failed", "KeyError: two"),
        "crashes": ("crashed", "its worker died 1 times while handling it"),
    }.get(end, ("rejected", "Reject: none left"))
    (found,) = await answers(db, number)
    assert (found["waiting"], found["handled"]) == (0, False)
    (failed,) = found["answers"]
    assert failed["value"] == {"error": error, "reason": reason}
    assert failed["headers"] == {"answers": number, "handler": "a.b", "failed": reason}
    assert (failed["agent"], failed["correlation_id"]) == ("a", "c")
    # Its redrive may yet answer; a second failure says nothing new.
    await db.fetchval("select public.stream_redrive()")
    (again,) = await worker.take()
    await worker.fail(again, outcome="dead", reason="failed", error="KeyError: three")
    await db.fetchval("select public.stream_redrive()")
    (again,) = await worker.take()
    await worker.finish(again, emits=[answer(again, found["reply_to"])])
    (found,) = await answers(db, number)
    assert [each["value"] for each in found["answers"]] == [failed["value"], "yes"]


async def test_a_replay_that_dies_takes_no_answer_back(db: Any, worker: Worker) -> None:
    await worker.subscribe({"name": "a.b", "patterns": ["k"], "max_attempts": 1})
    draft = request()
    (number,) = await send(db, draft)
    (taken,) = await worker.take()
    await worker.finish(taken, emits=[answer(taken, draft["headers"]["reply_to"])])
    await db.fetchval("select public.stream_replay('a.b')")
    await worker.fail(*await worker.take())
    (found,) = await answers(db, number)
    assert [each["value"] for each in found["answers"]] == ["yes"]


@pytest.mark.parametrize(
    "headers", [{"reply_to": "no key"}, {"reply_to": 5}, {"reply_to": None}, [], "text", None]
)
async def test_headers_that_name_no_key_are_no_request_and_hurt_nobody(
    db: Any, worker: Worker, headers: Any
) -> None:
    await worker.subscribe({"name": "a.b", "patterns": ["k"], "max_attempts": 1})
    # As a table from before it had its limits.
    await db.execute(
        "alter table consciousness_stream drop constraint headers_are_an_object_of_at_most_64_kb"
    )
    await insert(db, "k", 1, headers=headers)
    await worker.fail(*await worker.take())
    assert await db.fetchval("select count(*) from runtime.dead_letters") == 1
    assert await db.fetchval("select count(*) from consciousness_stream") == 1


async def test_whoever_listens_to_the_very_key_is_asked_and_else_whoever_listens_to_a_pattern(
    db: Any, worker: Worker
) -> None:
    await worker.subscribe("a.exact=k.one", "a.wild=k.*", "a.all=>")
    exact, wild = await send(db, request("k.one"), request("k.two"))
    taken = {(each.id, each.subscription): each for each in await worker.take()}
    for (number, _), each in taken.items():
        name = next(name for name, value in worker.numbers.items() if value == each.subscription)
        if name != "a.exact":
            (found,) = await answers(db, number)
            await worker.finish(each, emits=[answer(each, found["reply_to"], name, name)])
    (first, second) = await answers(db, exact, wild)
    assert (first["listeners"], first["waiting"], first["answers"]) == (1, 1, [])
    assert (second["listeners"], second["waiting"]) == (2, 0)
    assert {each["value"] for each in second["answers"]} == {"a.wild", "a.all"}
    # Another program that is no worker may answer too.
    await insert(db, first["reply_to"], "by hand", parent_id=exact)
    (first,) = await answers(db, exact)
    assert [each["value"] for each in first["answers"]] == ["by hand"]


async def test_k15_an_answer_tells_its_requester_alone_and_once_in_a_transaction(
    db: Any, worker: Worker, connect: Connect
) -> None:
    await worker.subscribe("a.b=k", announce=["notify"])
    await worker.fall_asleep()
    async with connect() as hearing:
        requester, other = Worker(hearing), Worker(hearing)
        listening = await ears(hearing, worker, requester, other)
        drafts = [request(requester=each) for each in (requester.id, requester.id, other.id)]
        await send(db, *drafts)
        assert set(await listening.heard()) == {worker.channel}
        taken = await worker.take()
        reply_to = {each.id: draft["headers"]["reply_to"] for each, draft in zip(taken, drafts, strict=True)}
        await worker.exchange(
            done=[each.report(seconds=0.1, emits=[answer(each, reply_to[each.id])]) for each in taken]
        )
        assert sorted(await listening.heard()) == sorted([requester.channel, other.channel])
        # Whoever cannot be reached so is not called, nor is what is no requester's key.
        (silent,) = await send(
            db, {**request(requester=requester.id), "headers": {"reply_to": f"answer.{requester.id}"}}
        )
        await insert(db, f"answer.{requester.id}", 1, parent_id=silent)
        await insert(db, "answer.of.another.kind", 1, parent_id=silent)
        await insert(db, f"answer.{requester.id}", 1)
        assert await listening.heard() == []


async def test_an_answer_is_broadcast_to_whoever_said_so(
    db: Any, worker: Worker, connect_as_superuser: Connect
) -> None:
    requester = uuid4()
    draft = request(requester=requester)
    draft["headers"]["reachable_by"] = ["realtime"]
    (number,) = await send(db, draft)
    await insert(db, f"answer.{requester}", 1, parent_id=number)
    async with connect_as_superuser() as admin:
        rows = await admin.fetch("select topic, event, private from realtime.messages")
    assert [tuple(row) for row in rows] == [(f"runtime:{requester}", "answer", True)]


async def test_an_agent_sees_the_answers_to_its_own_requests_alone(db: Any, worker: Worker) -> None:
    await worker.subscribe("a.b=k")
    mine, other = await send(db, request(agent="mine"), request(agent="other"))
    async with db.transaction():
        await db.execute(
            "select set_config('request.jwt.claims', $1, true)",
            json.dumps({"role": "agent", "agent": "mine"}),
        )
        assert [each["request"] for each in await answers(db, mine, other)] == [mine]
    with pytest.raises(asyncpg.PostgresError):
        await db.execute("set local role anon; select public.stream_answers('{1}')")


@pytest.mark.parametrize(
    "reply_to", ["payment.approved", "answer", "answers.x", "Answer.x", " answer.x", "answer."]
)
async def test_s2_a_dead_letter_answers_under_no_key_of_the_requesters_choice(
    db: Any, worker: Worker, reply_to: str
) -> None:
    await worker.subscribe({"name": "a.b", "patterns": ["k"], "max_attempts": 1})
    await insert(db, "k", 1, headers={"reply_to": reply_to, "reachable_by": ["notify"]})
    await worker.fail(*await worker.take())
    assert await db.fetchval("select count(*) from runtime.dead_letters") == 1
    assert await db.fetchval("select array_agg(key) from consciousness_stream") == ["k"]
