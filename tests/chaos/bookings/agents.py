"""One who writes into a table of its own: in a step, and with its end."""

import os
from typing import Any

from runtime import Agent, Context, Message
from tests.chaos.agents import RETRY, work
from tests.chaos.ledger import Notes

notes = Notes()
clerk = Agent("clerk")
INSERT = "insert into public.bookings (number, part) values ($1, $2)"


async def reserve(connection: Any, number: int) -> int:
    """Write the first part."""
    await connection.execute(INSERT, number, "reserved")
    await work()
    return number


@clerk.on("bookings.order", emits="bookings.ended", retry=RETRY)
async def book(message: Message[int], context: Context) -> dict[str, Any]:
    """Write both parts; over the REST API, where there are no transactions, only say so."""
    if "DATABASE_URL" not in os.environ:
        with notes.attempt(context.handler, message, message.value):
            return {"number": message.value, "is_booked": False}
    await context.step("reserve", reserve, message.value, transaction=True)
    async with context.transaction() as connection:
        with notes.attempt(context.handler, message, message.value):
            await work()
        await connection.execute(INSERT, message.value, "ended")
    return {"number": message.value, "is_booked": True}
