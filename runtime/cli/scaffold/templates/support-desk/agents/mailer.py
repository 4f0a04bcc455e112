"""Sends replies: here it writes them into a folder."""

from runtime import Agent, Context, Retry

from desk.folder import data_folder
from desk.messages import Reply

agent = Agent("mailer")


@agent.on("reply.ready", emits="reply.sent", rate="10/s", retry=Retry(attempts=8, on=(OSError,)))
def send(reply: Reply, context: Context) -> Reply:
    """Write the mail into the outbox.

    A worker that dies between sending and reporting sends again. A mail service takes an idempotency key for that:
    hand it `context.idempotency_key`. Here a second try replaces the same file.
    """
    outbox = data_folder() / "outbox"
    outbox.mkdir(parents=True, exist_ok=True)
    mail = f"To: {reply.to}\nSubject: {reply.subject}\nX-Key: {context.idempotency_key}\n\n{reply.text}\n"
    (outbox / f"{reply.ticket}.txt").write_text(mail, encoding="utf-8")
    return reply
