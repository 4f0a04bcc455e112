"""A chain of three agents, one of them ordered and one a fan-out; each handler notes in the ledger what it did."""

import os
import random

import anyio

from runtime import Agent, Context, Message, Retry
from tests.chaos.ledger import Notes

# Faults strike processes, not messages: nothing may become a dead letter for bad luck alone.
RETRY = Retry(attempts=50, first_seconds=0.05, cap_seconds=0.5)
FAILING = 0.01
LONGEST_SECONDS = float(os.environ.get("CHAOS_WORK_SECONDS", "0.01"))

notes = Notes()
orderly = Agent("orderly")
wide = Agent("wide")
last = Agent("last")
bulk = Agent("bulk")


async def work() -> None:
    """Take a moment, and sometimes fail."""
    await anyio.sleep(random.uniform(0, LONGEST_SECONDS))
    if random.random() < FAILING:
        raise ConnectionError("the world outside had a bad moment")


@orderly.on("chaos.lane.*", ordered=True, retry=RETRY, emits="chaos.step")
async def begin(message: Message[dict[str, int]], context: Context) -> int:
    """One after another in each lane."""
    number = message.value["number"]
    with notes.attempt(context.handler, message, number):
        await work()
    return number


@wide.on("chaos.step", retry=RETRY, emits="chaos.half.left")
async def left(message: Message[int], context: Context) -> int:
    """The first of two that get each step."""
    with notes.attempt(context.handler, message, message.value):
        await work()
    return message.value


@wide.on("chaos.step", retry=RETRY, emits="chaos.half.right")
def right(message: Message[int], context: Context) -> int:
    """The second, a plain function in a thread."""
    with notes.attempt(context.handler, message, message.value):
        pass
    return message.value


@last.on("chaos.half.*", retry=RETRY)
async def join(message: Message[int], context: Context) -> None:
    """The end of the chain: two results for each message sent."""
    with notes.attempt(context.handler, message, message.value):
        await work()
    context.emit("chaos.result", {"number": message.value, "half": message.key.rpartition(".")[2]})


@bulk.on("chaos.bulk", retry=RETRY)
async def count(message: Message[int]) -> None:
    """Nothing: whether it ran is in the kernel's log, and how many there were is in the ledger."""
