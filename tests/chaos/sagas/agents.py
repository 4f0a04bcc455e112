"""One who books a journey in three steps that can be undone, and gives some journeys up."""

from runtime import Agent, Context, Message, Reject
from tests.chaos.agents import RETRY, work
from tests.chaos.ledger import Notes
from tests.chaos.sagas.fates import Fate, fate_of

notes = Notes()
agency = Agent("agency")


async def give_back(number: int, step: str, context: Context) -> None:
    """Undo any of the steps."""
    with notes.attempt(f"agency.undo.{step}", context.message, number):
        await work()


@agency.step(undo=give_back, undo_retry=RETRY)
async def book(number: int, step: str) -> int:
    """Book one part of a journey."""
    await work()
    return number


# What one version has begun goes on with it alone: every worker runs it, and nothing may stand still for that.
@agency.on("sagas.order", emits="sagas.made", version="1", pin=True, retry=RETRY)
async def travel(message: Message[int], context: Context) -> int:
    """Book everything, or give up after two parts, or after all of them, or where there is no way back."""
    number, fate = message.value, fate_of(message.value)
    await context.step("flight", book, number, "flight")
    await context.step("hotel", book, number, "hotel")
    if fate is Fate.GIVEN_UP_EARLY:
        raise Reject("no car is left")
    await context.step("car", book, number, "car")
    if fate is Fate.NO_WAY_BACK:
        await context.no_return()
    with notes.attempt(context.handler, message, number):
        await work()
    if fate is not Fate.MADE:
        raise Reject("it rains")
    return number
