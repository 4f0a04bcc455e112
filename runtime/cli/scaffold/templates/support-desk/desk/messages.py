"""The values of the desk's messages. The agents share these, and none of them imports another."""

from typing import Literal

from pydantic import BaseModel


class Mail(BaseModel):
    """`mail.received`: what the mail service posts."""

    sender: str
    subject: str
    text: str


class Ticket(BaseModel):
    """`ticket.opened`: a mail under a number."""

    number: int
    customer: str
    subject: str
    text: str


class Sorting(BaseModel):
    """The model's opinion of a ticket."""

    topic: Literal["billing", "bug", "question"]
    urgent: bool


class SortedTicket(BaseModel):
    """`ticket.sorted`: a ticket and the model's opinion of it."""

    ticket: Ticket
    sorting: Sorting


class Reply(BaseModel):
    """`reply.ready` and `reply.sent`: a mail to the customer."""

    ticket: int
    to: str
    subject: str
    text: str


class OpenTickets(BaseModel):
    """`desk.report`: the tickets without a reply."""

    open: list[int]
