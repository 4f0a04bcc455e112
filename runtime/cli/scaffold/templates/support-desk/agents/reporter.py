"""Reports each working day which tickets wait for a reply."""

from datetime import timedelta

from runtime import Agent, Context, Tick

from desk.messages import OpenTickets

DAYS = 30

agent = Agent("reporter")


@agent.cron("0 8 * * mon-fri", timezone="Europe/Paris", emits="desk.report")
async def report(tick: Tick, context: Context) -> OpenTickets:
    """Compare what was opened with what was sent: the stream is the desk's memory."""
    since = tick.slot - timedelta(days=DAYS)
    opened = await context.read("ticket.opened", since=since, limit=10_000)
    sent = await context.read("reply.sent", since=since, limit=10_000)
    replied = {message.value["ticket"] for message in sent}
    numbers = (message.value["number"] for message in opened)
    return OpenTickets(open=[number for number in numbers if number not in replied])
