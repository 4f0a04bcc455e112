"""Two that take many at once: one books each message or has it fail alone, and one counts what was booked."""

import random

from runtime import Agent, BatchContext, Message, RetryLater
from tests.chaos.agents import FAILING, RETRY, work
from tests.chaos.ledger import Notes

notes = Notes()
gather = Agent("gather")


@gather.on("batches.entry", batch=20, within=0.05, concurrency=2, retry=RETRY)
async def book(entries: list[Message[int]], context: BatchContext) -> None:
    """Book each, but for a few, which have a bad moment of their own; at times all have one."""
    for entry in entries:
        with notes.attempt(context.handler, entry, entry.value):
            chance = random.random()
        if chance < FAILING:
            context.fail(entry, ConnectionError("the world outside had a bad moment"))
        elif chance < 2 * FAILING:
            context.fail(entry, RetryLater(0.05))
        else:
            context.emit("batches.booked", entry.value, cause=entry)
    await work()


@gather.on("batches.booked", batch=50, concurrency_total=200, rate="1000/s", retry=RETRY)
def tally(booked: list[Message[int]], context: BatchContext) -> None:
    """A plain function, held back by what all workers share."""
    for each in booked:
        with notes.attempt(context.handler, each, each.value):
            pass
