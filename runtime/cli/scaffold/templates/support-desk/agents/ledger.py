"""Keeps a ledger of the tickets, and reports each working day which of them wait for a reply."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

from desk.folder import data_folder
from desk.messages import Reply, Report, Ticket

from runtime import Agent

agent = Agent("ledger")


@agent.provide
def ledger() -> Iterator[sqlite3.Connection]:
    """The ledger, open for one transaction. With agents on several machines, use a table of your project instead."""
    data_folder().mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(data_folder() / "ledger.sqlite", timeout=30)) as connection, connection:
        connection.execute("create table if not exists opened (ticket integer primary key)")
        connection.execute("create table if not exists replied (ticket integer primary key)")
        yield connection


# From the earliest on: a ledger that is started late is whole all the same. Done twice, it leaves the same rows, and
# the reply may be noted before the ticket.
@agent.on("ticket.opened", start="earliest")
def note_ticket(ticket: Ticket, ledger: sqlite3.Connection) -> None:
    """Note a ticket."""
    ledger.execute("insert or ignore into opened values (?)", (ticket.number,))


@agent.on("reply.sent", start="earliest")
def note_reply(reply: Reply, ledger: sqlite3.Connection) -> None:
    """Note that a ticket has its reply."""
    ledger.execute("insert or ignore into replied values (?)", (reply.ticket,))


@agent.cron("0 8 * * mon-fri", timezone="Europe/Paris", emits="desk.report")
def report(ledger: sqlite3.Connection) -> Report:
    """Report the tickets without a reply."""
    rows = ledger.execute("select ticket from opened except select ticket from replied order by ticket")
    return Report(open=[ticket for (ticket,) in rows])
