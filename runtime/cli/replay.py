"""`runtime replay`: deliver old messages to one subscription again."""

from datetime import datetime
from typing import Annotated, Any

import anyio
import typer

from runtime.cli.completion import handlers, patterns
from runtime.cli.confirm import confirm
from runtime.cli.find_stream import find_settings
from runtime.cli.options import DryRun, Json, Yes
from runtime.cli.output import err, out, print_json
from runtime.cli.progress import unless_quick
from runtime.cli.times import counted, moment
from runtime.client.stream import connect

Moment = Annotated[
    datetime | None, typer.Option(parser=moment, metavar="TIME", help="2h for two hours ago, or a date.")
]


def replay(
    subscription: Annotated[str, typer.Argument(autocompletion=handlers, help="Its name: agent.handler.")],
    since: Moment = None,
    until: Moment = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", "-k", autocompletion=patterns, help="Only keys that this pattern matches; '>' is all."
        ),
    ] = None,
    ids: Annotated[
        list[int] | None,
        typer.Option("--message", "-m", metavar="ID", help="Only this message; may be repeated."),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Deliver messages of the past to a subscription again; what still waits for it is left as it is."""
    if since is None and until is None and key is None and not ids:
        raise typer.BadParameter(
            "say what to replay: --since, --until, --key or --message; --key '>' alone is all"
        )
    options = {"since": since, "until": until, "pattern": key or ">", "ids": ids or None}
    meant = anyio.run(_replay, subscription, {**options, "dry_run": True})
    if not dry_run and meant["matching"]:
        confirm(f"Deliver {counted(meant['matching'], 'message')} to {subscription} again?", yes=yes)
        meant = anyio.run(_replay, subscription, options)
    if as_json:
        print_json(meant)
    elif dry_run or not meant["matching"]:
        out.print(f"{counted(meant['matching'], 'message')} would be delivered to {subscription} again")
    else:
        replayed, left = meant["replayed"], meant["matching"] - meant["replayed"]
        are = "is" if replayed == 1 else "are"
        out.print(f"{counted(replayed, 'message')} {are} due for {subscription} again")
        if left:
            left_as_they_are = "was still waiting for it and stays as it is"
            if left > 1:
                left_as_they_are = "were still waiting for it and stay as they are"
            err.print(f"{left:,} {left_as_they_are}", style="dim")


async def _replay(subscription: str, options: dict[str, Any]) -> dict[str, Any]:
    async with connect(find_settings()) as stream, unless_quick("Replaying …"):
        return await stream.operations.replay(subscription, **options)
