"""Two timers: one whose every slot must tick, and one that tells how many slots it passed over."""

from runtime import Agent, Context, Message, Tick
from tests.chaos.agents import RETRY, work
from tests.chaos.ledger import Notes

notes = Notes()
clock = Agent("clock")


@clock.every("1s", missed="all", key="timers.clock.each", retry=RETRY)
async def each(message: Message[Tick], context: Context) -> None:
    """Every second, also those in which no worker ran."""
    with notes.attempt(context.handler, message, int(message.value.slot.timestamp())):
        await work()


@clock.every("2s", missed="one", key="timers.clock.some", retry=RETRY)
async def some(message: Message[Tick], context: Context) -> None:
    """Every other second, and the last of those in which no worker ran."""
    with notes.attempt(context.handler, message, int(message.value.slot.timestamp())):
        await work()
