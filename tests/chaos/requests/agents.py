"""Two who answer, one of them in a thread, and one who asks them both before it answers itself."""

from runtime import Agent, Context, Message
from runtime.errors import AskError
from tests.chaos.agents import RETRY, work
from tests.chaos.ledger import Notes

notes = Notes()
desk = Agent("desk")
left = Agent("left")
right = Agent("right")


@left.on("requests.part", name="answer", retry=RETRY)
async def from_left(message: Message[int], context: Context) -> int:
    """Answer with what was asked."""
    with notes.attempt(context.handler, message, message.value):
        await work()
    return message.value


@right.on("requests.part", name="answer", retry=RETRY)
def from_right(message: Message[int], context: Context) -> int:
    """Answer with the opposite."""
    with notes.attempt(context.handler, message, message.value):
        pass
    return -message.value


@desk.on("requests.whole", retry=RETRY)
async def bill(message: Message[int], context: Context) -> list[int]:
    """Ask both, as long as it takes; an attempt that comes after a crash finds the request of the one before."""
    with notes.attempt(context.handler, message, message.value):
        answers = await context.ask_all("requests.part", message.value, timeout=20)
        await work()
    if len(answers) < 2:
        raise AskError("the deadline came first", "requests.part", None)
    return sorted(answer.given() for answer in answers)
