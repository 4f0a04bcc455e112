"""`runtime tail`: messages as they are written."""

from typing import Annotated

import anyio
import typer

from runtime.cli.output import print_message, start_logs
from runtime.cli.place import find_settings
from runtime.keys import check_pattern
from runtime.settings import Settings
from runtime.stream import connect


def tail(
    pattern: Annotated[str, typer.Argument(help="A key, or a pattern: task.* or task.>.")] = ">",
    count: Annotated[
        int, typer.Option("-n", "--lines", min=0, max=10_000, help="Begin with the last so many.")
    ] = 10,
    since: Annotated[int | None, typer.Option(min=0, help="Begin after this id instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Print messages as they are written, until Ctrl-C."""
    check_pattern(pattern)
    settings = find_settings()
    start_logs("warning" if settings.log_level == "info" else settings.log_level, as_json=as_json)
    anyio.run(_tail, settings, pattern, count, since, as_json)


async def _tail(settings: Settings, pattern: str, count: int, since: int | None, as_json: bool) -> None:
    async with connect(settings) as stream:
        if since is None:
            last = await stream.read(pattern, limit=max(count, 1))
            since = last[-1].id if last else 0
            for message in last[len(last) - count :] if count else ():
                print_message(message, as_json=as_json)
        async for message in stream.listen(pattern, since=since):
            print_message(message, as_json=as_json)
