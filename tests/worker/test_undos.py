"""Undos: a delivery that dies has its finished steps undone, the last one first, and the dead letter says so."""

from functools import partial
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from runtime import Agent, Context, Reject, Retry, RetryLater, Step, connect
from runtime.agent.step_call import StepCall
from runtime.agent.undo import Undos
from runtime.client.dead_letters import DeadLetterFilter
from runtime.errors import DeclarationError, InvalidValue
from runtime.testing import Harness
from tests.integration.conftest import connected, outcomes
from tests.worker.test_steps import SOON, deliver, error_of
from tests.worker.test_worker import admin

pytestmark = pytest.mark.anyio


class Receipt(BaseModel):
    """What a charge returns."""

    id: int


def shop(told: list[Any]) -> Agent:
    """An agent with three steps, of which two can be undone; it tells what it does and undoes."""
    agent = Agent("shop")

    def release(item: str) -> None:
        told.append(f"release {item}")

    async def refund(receipt: Receipt, order: int, step: Step, context: Context) -> None:
        told.append(("refund", receipt, order, context.message.value, step.name))

    @agent.step(undo=release)
    def reserve(item: str) -> None:
        told.append(f"reserve {item}")

    @agent.step(undo=refund, undo_retry=SOON)
    async def charge(order: int, tip: int = 0) -> Receipt:
        told.append(f"charge {order}")
        return Receipt(id=order * 10)

    @agent.on("task.input", retry=Retry(attempts=2, first_seconds=0))
    async def sell(order: int, context: Context) -> None:
        await context.step("reserve", reserve, "tea")
        await context.step("look", lambda: told.append("look"))
        await context.step("pay", charge, order)
        raise Reject("no such address") if order == 7 else ValueError("no address")

    return agent


@pytest.mark.parametrize(("order", "reason"), [(7, "rejected"), (8, "failed")])
async def test_a_delivery_that_dies_is_undone_in_reverse_and_the_dead_letter_says_so(
    database: str, order: int, reason: str
) -> None:
    told: list[Any] = []
    await deliver(database, shop(told), order, dead=1)
    assert told == [
        "reserve tea", "look", f"charge {order}",
        ("refund", Receipt(id=order * 10), order, order, "undo.pay"), "release tea",
    ]  # fmt: skip
    first, *account = (await error_of(database)).splitlines()
    assert "address" in first
    assert account == ["Undone: pay, reserve"]
    async with connected(admin(database)) as connection:
        [letter] = await connection.fetch("select reason, traceback, attempts from runtime.dead_letters")
    assert letter["reason"] == reason
    assert "Traceback" in letter["traceback"]


async def test_what_cannot_be_undone_is_said_and_the_rest_is_undone(database: str) -> None:
    agent, told = Agent("shop"), list[str]()

    def release(item: str) -> None:
        told.append(f"release {item}")

    async def refund(step: Step) -> None:
        told.append(f"refund {step.attempt}")
        # The first is about the whole delivery, which is put off, and goes on here.
        raise RetryLater(0, "the bank is busy") if len(told) == 1 else OSError("no such account")

    def unpack(parcel: int) -> None:
        told.append("unpack")

    @agent.step(undo=release)
    def reserve(item: str) -> str:
        return item

    @agent.step(undo=refund, undo_retry=Retry(attempts=2, first_seconds=0))
    def charge() -> None: ...

    @agent.step(undo=unpack)
    def pack() -> str:
        return "a parcel"

    @agent.on("task.input")
    def sell(order: int, context: Context) -> None:
        context.step_blocking("reserve", partial(reserve, item="tea"))
        context.step_blocking("charge", charge)
        context.step_blocking("pack", pack, key="one")
        raise Reject("no such address")

    await deliver(database, agent, dead=1)
    assert told == ["refund 1", "refund 1", "refund 2", "release tea"]
    _, undone, faults = (await error_of(database)).splitlines()
    assert undone == "Undone: reserve"
    assert faults.startswith(
        "Could not be undone: pack [one] (InvalidValue: The result of step 'pack' does not fit"
    )
    assert faults.endswith("charge (OSError: no such account)")


async def test_a_version_without_the_undo_tries_again_and_then_says_so(database: str) -> None:
    agent = Agent("shop")

    @agent.step(undo=lambda: None)
    def charge() -> None: ...

    @agent.step(undo=lambda: None)
    def pack() -> None: ...

    @agent.on("task.input", retry=Retry(attempts=2, first_seconds=0))
    async def sell(order: int, context: Context) -> None:
        await context.step("pack", pack)
        await context.step("charge", charge)
        # As if another version went on from here.
        agent.hooks.undos = Undos("shop")
        agent.hooks.undos.declare(pack, lambda: None, Retry(), None, {})
        object.__setattr__(agent.handlers[0], "undos", agent.hooks.undos)
        raise Reject("no such address")

    await deliver(database, agent, dead=1)
    assert (await error_of(database)).splitlines()[1:] == [
        "Undone: pack", "Could not be undone: charge (shop declares no undo of 'charge' any more)",
    ]  # fmt: skip
    assert await outcomes(admin(database)) == {
        ("shop.sell", "dead"): 1, ("shop.sell", "failed"): 1, ("shop.sell", "undone"): 1,
    }  # fmt: skip


async def test_past_the_point_of_no_return_nothing_is_undone(database: str) -> None:
    agent, told = Agent("shop"), list[str]()

    @agent.step(undo=lambda: told.append("refund"))
    def charge() -> None: ...

    @agent.on("task.input", retry=SOON)
    async def sell(order: int, context: Context) -> None:
        await context.step("charge", charge)
        await context.no_return()
        told.append("after")
        if context.attempt < 2:
            raise OSError("not yet")
        raise Reject("too late")

    await deliver(database, agent, dead=1)
    assert told == ["after", "after"]
    assert await error_of(database) == "Reject: too late"


async def test_a_suspended_delivery_that_is_cancelled_is_undone_and_redriven_charges_anew(
    harness: Harness,
) -> None:
    agent, keys = Agent("shop"), list[str]()

    async def refund(paid: str, step: Step) -> None:
        keys.append(step.idempotency_key)

    @agent.step(undo=refund)
    async def charge(step: Step) -> str:
        keys.append(step.idempotency_key)
        return "paid"

    @agent.on("task.input")
    async def sell(order: int, context: Context) -> None:
        await context.step("charge", charge)
        await context.wait_for("never.written")

    # Over the REST API.
    async with harness.faults(), harness.running(agent), connect(harness.settings) as stream:
        sent = await harness.send("task.input", 7)
        for turn in (1, 2):
            if turn == 2:
                _ = [done async for done in stream.operations.redrive(DeadLetterFilter())]
            with anyio.fail_after(60):
                while not any(each["suspended"] for each in await stream.operations.waits()):
                    await anyio.sleep(0.005)
            answer = await stream.operations.cancel(sent.id)
            assert [each["state"] for each in answer["deliveries"]] == ["undoing"]
            await harness.drain(seconds=60)
            [letter] = await harness.dead_letters()
            assert letter["error"] == "cancelled by an operator\nUndone: charge"
    # A bank that knows a key would answer with the charge that it has refunded.
    assert len(set(keys)) == len(keys) == 4


async def test_a_handler_that_is_killed_anywhere_and_its_undos_come_to_the_same_end(harness: Harness) -> None:
    told: list[Any] = []
    async with harness.running(shop(told)):
        await harness.assert_same_end("task.input", 7)
        # Once undisturbed, and once for each of three steps and two undos.
        assert told == told[:5] * 6


def test_what_is_no_undo_is_refused_where_it_is_declared() -> None:
    agent, other = Agent("shop"), Agent("desk")

    def charge(order: int) -> int:
        return order

    def needs_more(receipt: int, amount: int) -> None: ...

    with pytest.raises(DeclarationError, match="none is named 'amount'"):
        agent.step(undo=needs_more)(charge)
    with pytest.raises(DeclarationError, match="goes above a function"):
        agent.step(undo=7)(charge)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="it takes no"):
        agent.step(undo=lambda *given: None)(charge)
    agent.step(undo=lambda receipt: None)(charge)
    with pytest.raises(DeclarationError, match="already"):
        agent.step(undo=lambda receipt: None)(charge)
    with pytest.raises(InvalidValue, match="declare it there too"):
        other.hooks.undos.record(StepCall("charge", charge, (1,)))
