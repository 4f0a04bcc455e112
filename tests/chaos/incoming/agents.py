"""An agent that reacts to webhooks."""

from runtime import Agent, Context, Message
from tests.chaos.agents import RETRY, work
from tests.chaos.ledger import Notes

notes = Notes()
counter = Agent("counter")


@counter.on("incoming.>", retry=RETRY)
async def note(message: Message[dict[str, int | str]], context: Context) -> None:
    """Each webhook once."""
    with notes.attempt(context.handler, message, int(message.value["number"])):
        await work()
