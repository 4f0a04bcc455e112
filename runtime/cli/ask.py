"""`runtime ask`: send a request, and print what its handler answers."""

from typing import Annotated, Any

import anyio
import typer
from rich.text import Text

from runtime.cli.completion import agents, keys
from runtime.cli.find_stream import find_settings
from runtime.cli.json_value import AsText, Value, value_of
from runtime.cli.options import Json
from runtime.cli.output import out, plain, print_json
from runtime.client.stream import connect
from runtime.encoding.json import legible
from runtime.keys import check_key
from runtime.message import Answer


def ask(
    key: Annotated[
        str, typer.Argument(autocompletion=keys, help="Dotted name to ask under, such as sum.wanted.")
    ],
    value: Value = None,
    as_text: AsText = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Seconds to wait for the answer.")] = 30,
    everybody: Annotated[
        bool, typer.Option("--all", help="Print the answers of all who handle it, with their names.")
    ] = False,
    first: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --all: wait for so many.")
    ] = None,
    agent: Annotated[
        str | None, typer.Option(autocompletion=agents, help="The writer's name on the request.")
    ] = None,
    dedup_key: Annotated[
        str | None, typer.Option(help="Asked again under the same key, it is the same request.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send a request, wait, and print what its handler returns; exit code 1 where nothing good comes."""
    check_key(key)
    if first is not None and not everybody:
        raise typer.BadParameter(
            "it goes with --all: otherwise the first good answer is printed.", param_hint="--first"
        )
    given = value_of(value, as_text=as_text)
    if everybody:
        answers = anyio.run(_ask_all, key, given, first, timeout, agent, dedup_key)
        _print_all(answers, as_json=as_json)
        if all(answer.error is not None for answer in answers):
            raise typer.Exit(1)
    else:
        _print_one(anyio.run(_ask, key, given, timeout, agent, dedup_key), as_json=as_json)


async def _ask(key: str, value: object, timeout: float, agent: str | None, dedup_key: str | None) -> Any:
    async with connect(find_settings()) as stream:
        return await stream.ask(key, value, timeout=timeout, agent=agent, dedup_key=dedup_key)


async def _ask_all(
    key: str, value: object, first: int | None, timeout: float, agent: str | None, dedup_key: str | None
) -> list[Answer]:
    async with connect(find_settings()) as stream:
        return await stream.ask_all(
            key, value, first=first, timeout=timeout, agent=agent, dedup_key=dedup_key
        )


def _print_one(value: object, *, as_json: bool) -> None:
    if as_json:
        print_json({"value": value})
    else:
        out.print(_text(value), soft_wrap=True)


def _print_all(answers: list[Answer], *, as_json: bool) -> None:
    if as_json:
        for answer in answers:
            error = None if answer.error is None else answer.error.error
            print_json({
                "id": answer.message.id, "handler": answer.handler, "value": answer.value, "error": error
            })  # fmt: skip
        return
    for answer in answers:
        text = (
            _text(answer.value)
            if answer.error is None
            else Text(f"failed: {plain(answer.error.error)}", "red")
        )
        out.print(
            Text.assemble((f"{plain(answer.handler) or '-':<20}", "magenta"), "  ", text), soft_wrap=True
        )


def _text(value: object) -> Text:
    """Return a string as it is, anything else as JSON."""
    return Text(plain(value) if isinstance(value, str) else legible(value))
