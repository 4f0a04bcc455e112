"""Opens a ticket for each mail that the mail service posts to /webhooks/mail."""

from runtime import Agent, Message, Source

from desk.messages import Mail, Ticket

# Signed by Standard Webhooks; the secret stands in MAIL_WEBHOOK_SECRET.
mail_service = Source("mail", "mail.{event}")

agent = Agent("intake")


@agent.on("mail.received", emits="ticket.opened")
async def open_ticket(message: Message[Mail]) -> Ticket:
    """The message's id is the ticket's number: a retry gives the same one."""
    mail = message.value
    return Ticket(number=message.id, customer=mail.sender, subject=mail.subject, text=mail.text)
