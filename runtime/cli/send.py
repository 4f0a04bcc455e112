"""`runtime send`: write one message."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from runtime.cli.completion import agents, keys
from runtime.cli.output import export_telemetry, out, print_json
from runtime.cli.place import find_settings
from runtime.keys import check_key
from runtime.message import Draft, Priority
from runtime.store import Sent
from runtime.stream import connect


class Class(StrEnum):
    """The classes of priority by name."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


def send(
    key: Annotated[
        str, typer.Argument(autocompletion=keys, help="Dotted name to write it under, such as task.output.")
    ],
    value: Annotated[
        str | None,
        typer.Argument(
            help="JSON, or any other text, which is sent as a string; @FILE reads a file, - reads stdin.",
            show_default="null",
        ),
    ] = None,
    as_text: Annotated[
        bool, typer.Option("--text", help="Send VALUE as a string, whatever it holds.")
    ] = False,
    agent: Annotated[
        str | None, typer.Option(autocompletion=agents, help="The writer's name on the message.")
    ] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds until it is due.")] = None,
    expires_in: Annotated[
        float | None, typer.Option(help="Seconds after which nobody wants it any more.")
    ] = None,
    priority: Annotated[Class, typer.Option(help="The class it waits in.")] = Class.NORMAL,
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
        dedup_key=dedup_key,
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
        # Its span goes out when the process ends: the exporter sees to that itself.
        export_telemetry()
    async with connect(settings) as stream:
        return (await stream.send_all([draft]))[0]


def value_of(given: str | None, *, as_text: bool) -> Any:
    """What is meant by VALUE."""
    if given is None:
        return None
    text = _read(given)
    if as_text:
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        # A lost bracket must not turn an object into a string.
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise typer.BadParameter(
                f"it looks like JSON and is none: {error}. Mend it, or send it as a string with --text.",
                param_hint="VALUE",
            ) from None
        return text


def _read(given: str) -> str:
    """The text itself, or what a file or stdin holds."""
    try:
        if given == "-":
            return sys.stdin.read()
        if given.startswith("@"):
            return Path(given[1:]).read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(
            f"{given[1:] or 'stdin'} cannot be read: {error.strerror}. Text that begins with @ goes by stdin.",
            param_hint="VALUE",
        ) from None
    except UnicodeDecodeError:
        raise typer.BadParameter("only UTF-8 text can be sent", param_hint="VALUE") from None
    return given
