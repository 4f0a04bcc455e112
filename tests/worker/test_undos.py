"""Undos: a delivery that dies has its finished steps undone, the last one first, and the dead letter says so."""

from typing import Any

import pytest
from pydantic import BaseModel

from runtime import Agent, Context, Reject, Retry, Step
from tests.integration.conftest import connected
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
