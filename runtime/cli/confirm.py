"""A question before a command that cannot be undone; a script says --yes."""

import sys

import typer

from runtime.cli.errors import UsageError
from runtime.cli.output import err


def confirm(question: str, *, yes: bool) -> None:
    """Return if the person agrees, or has agreed beforehand.

    Raises:
        typer.Exit: they do not agree.
        typer.BadParameter: there is no terminal to ask at, or the output is JSON, for a program.
    """
    if yes:
        return
    if not sys.stdin.isatty() or err.is_json:
        raise UsageError(f"{question} Nobody is there to ask: say --yes.")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
