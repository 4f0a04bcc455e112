"""VALUE on the command line: JSON or a text, from the line itself, a file or stdin."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Value = Annotated[
    str | None,
    typer.Argument(
        help="JSON, or any other text, which is sent as a string; @FILE reads a file, - reads stdin.",
        show_default="null",
    ),
]
AsText = Annotated[bool, typer.Option("--text", help="Send VALUE as a string, whatever it holds.")]


def value_of(given: str | None, *, as_text: bool) -> Any:
    """Return the value that VALUE stands for."""
    if given is None:
        return None
    text = _read(given)
    if as_text:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # A lost bracket must not turn an object into a string.
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise typer.BadParameter(
                f"it looks like JSON and is none: {error}. Mend it, or send it as a string with --text.",
                param_hint="VALUE",
            ) from None
        return text


def edits_of(given: list[str]) -> dict[str, Any]:
    """Return the new results of steps, each given as STEP=JSON, by the names of the steps."""
    edits: dict[str, Any] = {}
    for each in given:
        step, equals, text = each.partition("=")
        try:
            edits[step] = json.loads(text)
        except (ValueError, RecursionError):
            equals = ""
        if not (step and equals):
            raise typer.BadParameter(
                f"{each!r:.100} is not STEP=JSON, such as draft='\"a text\"' or total=7", param_hint="--edit"
            )
    return edits


def _read(given: str) -> str:
    """Return the text itself, or the content of a file or stdin."""
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
