"""The options that many commands have."""

from typing import Annotated

import typer

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line; an error too.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
FromStep = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="STEP", help="Run this step again, and what finished after it.", show_default=False
    ),
]
Edits = Annotated[
    list[str] | None,
    typer.Option("--edit", metavar="STEP=JSON", help="Give a kept step this result; may be repeated."),
]
