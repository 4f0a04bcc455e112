"""The archivist listens to everything and keeps an index: which message came when, from whom, after which."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from runtime import Agent, Message

from ._desk import output_folder

agent = Agent("archivist")

TABLE = """
create table if not exists messages (
    id integer primary key,
    key text not null,
    agent text,
    correlation_id text,
    parent_id integer,
    title text,
    created_at text not null
)
"""
# Replaced, not added: a message that comes a second time leaves the index as it is.
RECORD = "insert or replace into messages values (?, ?, ?, ?, ?, ?, ?)"


@agent.provide
def archive() -> Iterator[sqlite3.Connection]:
    """The archive, open for one transaction."""
    output_folder().mkdir(parents=True, exist_ok=True)
    # One transaction at a time may write; another worker waits for its turn.
    with closing(sqlite3.connect(output_folder() / "archive.sqlite", timeout=30)) as connection, connection:
        connection.execute(TABLE)
        yield connection


@agent.on(">", start="earliest", batch=100, concurrency=1)
def record(messages: list[Message[Any]], archive: sqlite3.Connection) -> None:
    """Write one line about each, all in one transaction. It starts at the earliest: a late archive is whole."""
    archive.executemany(RECORD, [_line(message) for message in messages])


def _line(message: Message[Any]) -> tuple[Any, ...]:
    origin = (message.id, message.key, message.agent, message.correlation_id, message.parent_id)
    return (*origin, _title(message.value), message.created_at.isoformat())


def _title(value: Any) -> str | None:
    """The title of what the message is about, wherever in it that is said."""
    if isinstance(value, dict):
        title = value.get("title") or _title(value.get("draft")) or value.get("path")
        return title if isinstance(title, str) else None
    return None
