"""`runtime send`: write one message."""

from enum import StrEnum
from typing import Annotated

import anyio
import typer

from runtime.cli.completion import agents, keys
from runtime.cli.find_stream import find_settings
from runtime.cli.json_value import AsText, Value, value_of
from runtime.cli.output import export_telemetry, out, print_json
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
    delay: Annotated[float | None, typer.Option(help="Seconds until it is due.")] = None,
    expires_in: Annotated[
        float | None, typer.Option(help="Seconds after which nobody wants it any more.")
    ] = None,
    priority: Annotated[PriorityName, typer.Option(help="The class it waits in.")] = PriorityName.NORMAL,
    dedup_key: Annotated[
        str | None, typer.Option(help="A message with this key is stored once within the dedup retention.")
    ] = None,
    correlation_id: Annotated[str | None, typer.Option(help="What it belongs to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write one message; every agent with a handler for its key is woken."""
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
    sent = anyio.run(_send, draft)
    if as_json:
        print_json({"id": sent.id, "key": key, "duplicate": sent.duplicate})
    elif sent.duplicate:
        out.print(f"#{sent.id} was sent before under this dedup key; nothing was written")
    else:
        out.print(f"#{sent.id} {key}")


async def _send(draft: Draft) -> Sent:
    settings = find_settings()
    if settings.telemetry:
        # The exporter sends the span when the process ends.
        export_telemetry()
    async with connect(settings) as stream:
        return (await stream.send_all([draft]))[0]
