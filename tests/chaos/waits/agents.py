"""One who books an order in a step, waits for its payment, and says what was paid."""

from runtime import Agent, Context, Message
from tests.chaos.agents import RETRY, work
from tests.chaos.ledger import Notes

notes = Notes()
till = Agent("till")


@till.on("waits.order", emits="waits.sold", retry=RETRY)
async def sell(message: Message[int], context: Context) -> dict[str, int]:
    """Book, wait and sell; some payments come before the order is looked at, most while it is suspended."""

    async def book() -> int:
        with notes.attempt("till.book", message, message.value):
            await work()
        return message.value

    booked = await context.step("book", book)
    paid = await context.wait_for("waits.paid", {"number": message.value})
    with notes.attempt(context.handler, message, message.value):
        pass
    return {"number": booked, "paid": paid.id}
