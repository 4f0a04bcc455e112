"""`runtime prune`: remove old messages now."""

from typing import Annotated

import anyio
import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from runtime.cli.confirm import confirm
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json, Yes
from runtime.cli.output import err, out, print_json
from runtime.cli.times import counted, duration, span
from runtime.client.stream import connect


def prune(
    older_than: Annotated[
        float,
        typer.Option(parser=span, metavar="SPAN", help="From which age on: 12h, 30d.", show_default=False),
    ],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove messages older than this, with the log of their runs, in bounded batches.

    A delivery that nobody took in all that time counts as expired. Dead letters keep their own copy. To have it
    done by the workers, set RUNTIME_RETENTION_DAYS.
    """
    confirm(f"Remove every message older than {duration(older_than)} for good?", yes=yes)
    pruned, expired = anyio.run(_prune, older_than)
    if as_json:
        print_json({"pruned": pruned, "expired": expired})
    else:
        lost = counted(expired, "delivery", "deliveries")
        out.print(f"{counted(pruned, 'message')} removed, {lost} expired")


async def _prune(older_than: float) -> tuple[int, int]:
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    async with connect(find_settings()) as stream:
        with Progress(*columns, console=err, transient=True) as progress:
            task = progress.add_task("0 messages removed")

            async def show(pruned: int, expired: int) -> None:
                progress.update(task, description=f"{counted(pruned, 'message')} removed")

            return await stream.operations.prune(older_than, progress=show)
