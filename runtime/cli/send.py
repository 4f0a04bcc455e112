"""`runtime send`: write one message."""

import logging
from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated

import anyio
import typer

from runtime.cli.completion import agents, keys
from runtime.cli.find_stream import find_settings
from runtime.cli.help import choices
from runtime.cli.json_value import AsText, Value, value_of
from runtime.cli.options import Json
from runtime.cli.output import err, export_telemetry, out, print_json
from runtime.client.stream import connect
from runtime.keys import check_key
from runtime.message import Draft, Priority, check_dedup_key
from runtime.store import Sent


class PriorityName(StrEnum):
    """The classes of priority by name."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


def send(
    key: Annotated[
        str, typer.Argument(autocompletion=keys, help="Dotted name to write it under, such as task.output.")
    ],
    value: Value = None,
    as_text: AsText = False,
    agent: Annotated[
        str | None, typer.Option(autocompletion=agents, help="The writer's name on the message.")
    ] = None,
    delay: Annotated[float | None, typer.Option(metavar="SECONDS", help="Seconds until it is due.")] = None,
    expires_in: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Seconds after which nobody wants it any more.")
    ] = None,
    priority: Annotated[
        PriorityName, typer.Option(metavar=choices(PriorityName), help="The class it waits in.")
    ] = PriorityName.NORMAL,
    dedup_key: Annotated[
        str | None, typer.Option(help="A message with this key is stored once within the dedup retention.")
    ] = None,
    correlation_id: Annotated[str | None, typer.Option(help="What it belongs to.")] = None,
    require_listener: Annotated[
        bool, typer.Option("--require-listener", help="Send nothing if no handler listens to the key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write one message; every agent with a handler for its key is woken.

    If no handler listens to the key, the message is stored all the same, and stderr says so.
    """
    check_key(key)
    draft = Draft(
        key,
        value_of(value, as_text=as_text),
        agent=agent,
        delay=delay,
        expires_in=expires_in,
        priority=Priority[priority.name],
        dedup_key=check_dedup_key(dedup_key),
        correlation_id=correlation_id,
    )
    sent, similar = anyio.run(_send, draft, require_listener)
    if as_json:
        print_json({"id": sent.id, "key": key, "duplicate": sent.duplicate, "unheard": sent.unheard})
    elif sent.duplicate:
        out.print(f"#{sent.id} was sent before under this dedup key; nothing was written")
    else:
        out.print(f"#{sent.id} {key}")
    if sent.unheard and not as_json:
        err.print(_advice(key, sent.id, similar), style="yellow", soft_wrap=True)


def _advice(key: str, number: int, similar: list[str]) -> str:
    """Return what to say of a message that no handler gets."""
    cause = (
        f"Did you mean {' or '.join(similar)}?"
        if similar
        else "Has the agent run once? `runtime subscriptions` lists what listens."
    )
    return (
        f"No handler listens to {key}: #{number} is stored, and no agent gets it. {cause} "
        f'An agent that comes later gets it with start="earliest", or by: runtime replay AGENT.HANDLER -m {number}'
    )


async def _send(draft: Draft, require_listener: bool) -> tuple[Sent, list[str]]:
    """Send it; return also keys like its own that handlers listen to, if none listens to that."""
    settings = find_settings()
    if settings.telemetry:
        # The exporter sends the span when the process ends.
        export_telemetry()
    async with connect(settings) as stream:
        # The command itself says that nobody listens.
        logging.getLogger("runtime.client.stream").setLevel(logging.ERROR)
        (sent,) = await stream.send_all([draft], require_listener=require_listener)
        if not sent.unheard:
            return sent, []
        subscriptions = (await stream.stats())["subscriptions"]
        keys = {pattern for each in subscriptions for pattern in each["patterns"]}
        return sent, get_close_matches(draft.key, keys, n=2)
