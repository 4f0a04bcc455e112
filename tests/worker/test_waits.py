"""G13: a wait whose message or time has come goes on, once, whoever dies when. Over a direct connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel

from runtime import Agent, Context, Decision, Retry, Stream, WaitFor, connect
from runtime.errors import Refused, RuntimeFault, WaitTimeout
from tests.integration.conftest import connected, running, settled, until
from tests.worker.test_steps import ended
from tests.worker.test_worker import admin, direct

pytestmark = pytest.mark.anyio

SOON = Retry(attempts=3, first_seconds=0, cap_seconds=0)


@asynccontextmanager
async def served(database: str, agent: Agent) -> AsyncIterator[tuple[Stream, Any]]:
    """A worker of the agent, a stream to write to, and a connection to look."""
    async with (
        connected(admin(database)) as connection,
        connect(direct(database)) as stream,
        running([agent], direct(database)),
    ):
        for handler in agent.handlers:
            await until(partial(settled, connection, handler.name))
        yield stream, connection


async def is_suspended(connection: Any) -> bool:
    """Whether a delivery waits without a lease, and no writer can have missed it."""
    return bool(
        await connection.fetchval(
            "select exists (select from runtime.deliveries where lease is null) "
            "and exists (select from runtime.waits) and not exists (select from runtime.unsettled_waits)"
        )
    )


async def test_g13_a_message_that_comes_within_a_moment_does_not_unwind_the_handler(database: str) -> None:
    agent, begun, got = Agent("shop"), list[int](), list[Any]()

    @agent.on("order.placed")
    async def sell(order: int, context: Context) -> None:
        begun.append(order)
        paid = await context.wait_for("payment.settled", {"order": order})
        got.append(paid.value)

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        await until(lambda: begun == [7])
        await stream.send("payment.settled", {"order": 8})
        await stream.send("payment.settled", {"order": 7.0, "cents": 100})
        await until(partial(ended, connection))
    assert (begun, got) == ([7], [{"order": 7.0, "cents": 100}])


async def test_g13_a_longer_wait_is_suspended_and_goes_on_with_its_message(database: str) -> None:
    agent, begun, charged, got = Agent("shop"), list[int](), list[int](), list[Any]()

    async def charge(order: int) -> int:
        charged.append(order)
        return order

    @agent.on("order.placed")
    async def sell(order: int, context: Context) -> None:
        begun.append(context.attempt)
        await context.step("charge", charge, order)
        paid = await context.wait_for("payment.settled", {"order": order}, timeout="7d")
        got.append(paid.value)

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        await until(partial(is_suspended, connection), seconds=60)
        assert await connection.fetchval(
            "select visible_at > now() + interval '6 days' from runtime.deliveries"
        )
        await stream.send("payment.settled", {"order": 8})
        assert await is_suspended(connection)
        await stream.send("payment.settled", {"order": 7})
        await until(partial(ended, connection))
        assert await connection.fetchval("select count(*) from runtime.waits") == 0
    # It ran from the top, and no attempt was counted.
    assert (set(begun), charged, got) == ({1}, [7], [{"order": 7}])


async def test_k8_a_poison_message_that_waits_does_not_hold_up_the_one_that_it_waits_for(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A handler that waited in its process would do so for longer than this test.
    monkeypatch.setattr("runtime.worker.execution.services.GRACE_SECONDS", 3600.0)
    agent, got = Agent("shop"), list[Any]()

    @agent.on("order.placed")
    async def sell(order: int, context: Context) -> None:
        got.append((await context.wait_for("payment.settled", {"order": order})).value)

    @agent.on("payment.due", emits="payment.settled")
    async def pay(order: int) -> dict[str, int]:
        return {"order": order}

    async with served(database, agent):
        pass
    async with connected(admin(database)) as connection, connect(direct(database)) as stream:
        await stream.send("order.placed", 7)
        await stream.send("payment.due", 7)
        await connection.execute(
            "update runtime.deliveries set crashes = 2, heavy = true, visible_at = clock_timestamp()"
        )
        async with running([agent], direct(database)):
            await until(partial(ended, connection), seconds=60)
    assert got == [{"order": 7}]


async def test_g13_what_was_written_before_the_wait_began_counts(database: str) -> None:
    agent, may_wait, got = Agent("shop"), asyncio.Event(), list[Any]()

    @agent.on("order.placed")
    async def sell(order: int, context: Context) -> None:
        await may_wait.wait()
        got.append((await context.wait_for("payment.*", {"order": order})).key)

    async with served(database, agent) as (stream, connection):
        await stream.send("payment.early", {"order": 7})
        await stream.send("order.placed", 7)
        await stream.send("payment.settled", {"order": 7})
        await stream.send("payment.late", {"order": 7})
        may_wait.set()
        await until(partial(ended, connection))
    assert got == ["payment.settled"]


async def test_g13_time_ends_a_wait_and_a_sleep(database: str) -> None:
    agent, begun, got = Agent("shop"), list[int](), list[str]()

    @agent.on("order.placed", retry=SOON)
    async def sell(order: int, context: Context) -> None:
        begun.append(order)
        await context.sleep("2.5s")
        got.append("slept")
        try:
            await context.wait_for("payment.settled", timeout=2.2)
        except WaitTimeout:
            got.append("timeout")
        if got.count("timeout") < 2:
            raise ValueError("once more")
        with pytest.raises(WaitTimeout):
            await context.wait_for("payment.other", timeout=0)

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        await until(partial(ended, connection), seconds=60)
        assert await connection.fetchval("select count(*) from runtime.dead_letters") == 0
    # It was suspended twice and failed once, and slept and waited once in all.
    assert len(begun) >= 4
    assert got[-4:] == ["slept", "timeout", "slept", "timeout"]


async def test_g13_the_first_of_several_and_all_of_them(database: str) -> None:
    agent, got = Agent("shop"), list[Any]()

    @agent.on("order.placed")
    async def sell(order: int, context: Context) -> None:
        which, first = await context.wait_any(WaitFor("a.one"), WaitFor("a.two"), timeout="1h")
        both = await context.wait_all(WaitFor("b.one"), WaitFor("b.two", {"n": 1}))
        got.append((which, first.key, [each.key for each in both]))

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        await until(partial(is_suspended, connection), seconds=60)
        await stream.send("a.two")
        await until(partial(waits_for, connection, "b.one"), seconds=60)
        # It has gone on with the second, and stays with it.
        await stream.send("a.one")
        await stream.send("b.two", {"n": 1, "more": None})
        await until(partial(is_suspended, connection), seconds=60)
        await stream.send("b.one")
        await until(partial(ended, connection), seconds=60)
    assert got == [(1, "a.two", ["b.one", "b.two"])]


async def waits_for(connection: Any, pattern: str) -> bool:
    """Whether something waits for this."""
    return bool(
        await connection.fetchval("select exists (select from runtime.waits where pattern = $1)", pattern)
    )


async def test_g13_a_plain_handler_waits_as_well(database: str) -> None:
    agent, begun, got = Agent("shop"), list[int](), list[Any]()

    @agent.on("order.placed")
    def sell(order: int, context: Context) -> None:
        begun.append(order)
        context.sleep_blocking(2.1)
        got.append(context.wait_for_blocking("payment.settled").value)

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        await stream.send("payment.settled", 1)
        await until(partial(ended, connection), seconds=60)
    assert (begun, got) == ([7, 7], [1])


async def test_g13_a_plain_handler_waits_for_several_messages_and_for_people(database: str) -> None:
    agent, got = Agent("shop"), list[Any]()

    @agent.on("order.placed")
    def sell(order: int, context: Context) -> None:
        first, paid = context.wait_any_blocking(WaitFor("payment.failed"), WaitFor("payment.settled"))
        both = context.wait_all_blocking(WaitFor("parcel.packed"), WaitFor("van.booked"), timeout="1h")
        decision = context.approve_blocking("Send it?", answer=int, timeout="1h")
        late = context.approve_blocking("And a card?", timeout=2.1, on_timeout="reject")
        got.append((first, paid.value, [each.value for each in both], decision.answer, late.approved))

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        await until(partial(is_suspended, connection), seconds=60)
        for key, value in (("payment.settled", 100), ("van.booked", "van"), ("parcel.packed", "box")):
            await stream.send(key, value)
        await until(partial(waits_for, connection, "approval.decided"), seconds=60)
        [asked] = await stream.operations.approvals()
        await stream.operations.decide(asked["request"], True, answer=3)
        await until(partial(ended, connection), seconds=60)
    assert got == [(1, 100, ["box", "van"], 3, False)]


async def test_a_plain_handlers_wait_refuses_to_block_an_event_loop(database: str) -> None:
    agent, refused = Agent("shop"), list[str]()

    @agent.on("order.placed")
    async def sell(order: int, context: Context) -> None:
        for call in (
            partial(context.wait_any_blocking, WaitFor("payment.settled")),
            partial(context.wait_all_blocking, WaitFor("payment.settled")),
            partial(context.approve_blocking, "Send it?"),
        ):
            with pytest.raises(RuntimeFault) as fault:
                call()
            refused.append(str(fault.value))

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        await until(partial(ended, connection), seconds=60)
    assert [text.partition("await context.")[2].partition("(")[0] for text in refused] == [
        "wait_any", "wait_all", "approve",
    ]  # fmt: skip


async def test_a_handler_that_catches_the_suspension_fails_with_that_word(database: str) -> None:
    agent = Agent("shop")

    @agent.on("order.placed", retry=Retry(attempts=1))
    async def sell(order: int, context: Context) -> None:
        try:
            await context.sleep("1h")
        except BaseException:  # noqa: BLE001 - what the test is about
            return

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        await until(partial(ended, connection), seconds=60)
        assert "has caught the exception that suspends it" in await connection.fetchval(
            "select error from runtime.dead_letters"
        )
        assert await connection.fetchval("select count(*) from runtime.waits") in (0, 1)


async def test_g13_waits_in_a_task_group_suspend_together(database: str) -> None:
    agent, got = Agent("shop"), list[Any]()

    @agent.on("order.placed")
    async def sell(order: int, context: Context) -> None:
        async def one(pattern: str) -> None:
            got.append((await context.wait_for(pattern)).key)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one("a.one"))
            tasks.create_task(one("a.two"))
        got.append("both")

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        await until(partial(is_suspended, connection), seconds=60)
        await stream.send("a.one")
        await until(partial(is_suspended, connection), seconds=60)
        await stream.send("a.two")
        await until(partial(ended, connection), seconds=60)
    assert got[-1] == "both"
    assert set(got) == {"a.one", "a.two", "both"}


class Refund(BaseModel):
    """What a person says with an approval."""

    cents: int


async def test_g13_people_decide_once_and_the_handler_goes_on_with_it(database: str) -> None:
    agent, begun, got = Agent("shop"), list[int](), list[Decision]()

    @agent.on("refund.wanted", retry=SOON)
    async def refund(order: int, context: Context) -> None:
        begun.append(order)
        if len(begun) == 1:
            await context.step("look", dict)
        decision = await context.approve(
            f"Refund order {order}?", details={"order": order}, answer=Refund, timeout="2d"
        )
        got.append(decision)

    async with served(database, agent) as (stream, connection):
        await stream.send("refund.wanted", 7)
        await until(partial(is_suspended, connection), seconds=60)
        [asked] = await stream.operations.approvals()
        assert (asked["title"], asked["details"], asked["subscription"]) == (
            "Refund order 7?", {"order": 7}, "shop.refund",
        )  # fmt: skip
        assert asked["schema"]["required"] == ["cents"]
        first = await stream.operations.decide(
            asked["request"], True, answer={"cents": 50}, by="ada", why="kind"
        )
        second = await stream.operations.decide(asked["request"], False, by="bob")
        await until(partial(ended, connection), seconds=60)
        assert await stream.operations.approvals() == []
        with pytest.raises(Refused, match="is no request for approval"):
            await stream.operations.decide(asked["message"], True)
    assert (first["decided"], second["decided"]) == (True, False)
    assert (second["decision"]["by"], second["decision"]["why"]) == ("ada", "kind")
    [decision] = got
    assert decision
    assert (decision.answer, decision.by, decision.why) == (Refund(cents=50), "ada", "kind")
    # A busy machine may have it look once more in between.
    assert len(begun) in (2, 3)


async def test_an_answer_that_does_not_fit_by_sql_has_people_asked_again_and_told_why(database: str) -> None:
    agent, got = Agent("shop"), list[Any]()

    @agent.on("refund.wanted", retry=Retry(attempts=1))
    async def refund(order: int, context: Context) -> None:
        decision = await context.approve("Refund it?", answer=Refund, timeout="2d")
        got.append((decision.answer, decision.by))

    async with served(database, agent) as (stream, connection):
        await stream.send("refund.wanted", 7)
        requests, refused = list[int](), list[Any]()
        for answer in ('{"cents": "many"}', None, '{"cents": 50}'):
            await until(partial(is_asked, stream, *requests), seconds=60)
            [asked] = await stream.operations.approvals()
            requests.append(asked["request"])
            refused.append(asked["refused"] and asked["refused"]["why"])
            await connection.execute(
                f"select stream_decide({asked['request']}, true, {quoted(answer)}, by => 'ada')"
            )
        await until(partial(ended, connection), seconds=60)
        assert await connection.fetchval("select count(*) from runtime.dead_letters") == 0
    assert got == [(Refund(cents=50), "ada")]
    assert refused[0] is None
    assert "cents: Input should be a valid integer" in refused[1]
    assert "does not fit" in refused[2]


def quoted(text: str | None) -> str:
    return "null" if text is None else f"'{text}'"


async def is_asked(stream: Stream, *before: int) -> bool:
    """Whether one request is open that is none of these."""
    found = await stream.operations.approvals()
    return len(found) == 1 and found[0]["request"] not in before


async def test_a_redrive_of_what_died_of_a_timeout_waits_and_asks_anew(database: str) -> None:
    agent, got, times_out = Agent("shop"), list[Any](), [2.1, "1h"]

    @agent.on("order.placed", retry=Retry(attempts=1))
    async def sell(order: int, context: Context) -> None:
        with suppress(WaitTimeout):
            await context.wait_for("hint.given", timeout=2.1)
        await context.step("look", dict)
        await context.sleep(2.1)
        paid = await context.wait_for("payment.settled", timeout=times_out[0])
        decision = await context.approve("Send it?", timeout=times_out[1])
        got.append((paid.value, decision.by))

    async with served(database, agent) as (stream, connection):
        await stream.send("order.placed", 7)
        for key, more in (("payment.settled", ["1h", 2.1]), ("approval.decided", ["1h", "1h"])):
            await until(partial(ended, connection), seconds=60)
            assert "WaitTimeout" in await connection.fetchval("select error from runtime.dead_letters")
            times_out[:] = more
            assert await connection.fetchval("select stream_redrive() ->> 'redriven'") == "1"
            await until(partial(waits_for, connection, key), seconds=60)
            if key == "payment.settled":
                await stream.send("payment.settled", 100)
        [asked] = await stream.operations.approvals()
        assert (await stream.operations.decide(asked["request"], True, by="ada"))["decided"]
        await until(partial(ended, connection), seconds=60)
        names = await connection.fetchval("select array_agg(name) from runtime.steps where value ? 'timeout'")
    assert got == [(100, "ada")]
    # What it had caught, and its sleep, stay as they were.
    assert sorted(names) == ["wait.hint.given", "wait.sleep"]


async def test_g13_when_nobody_decides_the_time_does(database: str) -> None:
    agent, got = Agent("shop"), list[Any]()

    @agent.on("refund.wanted")
    async def refund(order: int, context: Context) -> None:
        got.append(bool(await context.approve("One?", timeout=0.1, on_timeout="approve")))
        got.append(bool(await context.approve("Two?", timeout=0.1, on_timeout="reject")))
        with pytest.raises(WaitTimeout, match=r"Nobody has decided in time: Three\?"):
            await context.approve("Three?", timeout=0.1)

    async with served(database, agent) as (stream, connection):
        await stream.send("refund.wanted", 7)
        await until(partial(ended, connection), seconds=60)
        assert await connection.fetchval("select count(*) from runtime.dead_letters") == 0
        requests = await stream.read("approval.requested")
        assert [(await stream.operations.decide(each.id, True))["expired"] for each in requests] == [True] * 3
    assert got == [True, False]
