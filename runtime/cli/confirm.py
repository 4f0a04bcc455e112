"""A question before a command that cannot be undone; a script says --yes."""

import sys
from typing import Annotated

import typer

from runtime.cli.output import err

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def confirm(question: str, *, yes: bool) -> None:
    """Return if the person agrees, or has agreed beforehand.

    Raises:
        typer.Exit: they do not agree, or there is no terminal to ask at.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        err.print(f"{question} Nobody is there to ask: say --yes, or --dry-run to see what it means.")
        raise typer.Exit(2)
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
