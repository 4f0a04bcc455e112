"""Three that take whatever is written: one by one, many at once, and in order."""

from typing import Any

from runtime import Agent, Context, Message
from tests.chaos.agents import RETRY
from tests.chaos.ledger import Notes

notes = Notes()
prey = Agent("prey")


@prey.on("hostile.row", retry=RETRY)
async def take(message: Message[Any], context: Context) -> None:
    """One by one, and what was taken is written on, as far as it is no burden."""
    with notes.attempt(context.handler, message, message.id):
        context.emit("hostile.taken", message.id)


@prey.on("hostile.row", batch=20, retry=RETRY)
async def gather(messages: list[Message[Any]], context: Context) -> None:
    """Many at once, of which some may be what cannot be read."""
    for message in messages:
        with notes.attempt(context.handler, message, message.id):
            pass


@prey.on("hostile.row", ordered=True, retry=RETRY)
def queue(value: Any, context: Context) -> None:
    """A plain function, in the order of writing."""
    with notes.attempt(context.handler, context.message, context.message.id):
        pass
