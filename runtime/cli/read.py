"""`runtime read`: messages of the stream."""

from typing import Annotated, Any

import anyio
import typer

from runtime.agent.services import ReadOptions
from runtime.cli.completion import patterns
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import err, print_message
from runtime.cli.times import moment
from runtime.client.stream import connect
from runtime.keys import check_pattern
from runtime.message import Message


def read(
    pattern: Annotated[
        str, typer.Argument(autocompletion=patterns, help="A key, or a pattern: task.* or task.>.")
    ] = ">",
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=10_000, help="How many at most.")
    ] = 20,
    after: Annotated[
        int | None, typer.Option(metavar="ID", help="The oldest with a higher id than this one.")
    ] = None,
    before: Annotated[int | None, typer.Option(metavar="ID", help="Only those with a lower id.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="The oldest written at this time or later: 2h for two hours ago, or a date."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only those written before this time.")
    ] = None,
    correlation_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Only those with this correlation id.")
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Only the newest message of each key.")] = False,
    as_json: Json = False,
) -> None:
    """Print the newest messages under a key or pattern, in the order of their ids."""
    check_pattern(pattern)
    options: ReadOptions = {
        "after": after, "before": before, "correlation_id": correlation_id,
        "since": None if since is None else moment(since), "until": None if until is None else moment(until),
    }  # fmt: skip
    if latest and any(given is not None for given in options.values()):
        raise typer.BadParameter(
            "the newest of each key cannot be asked for in a range of ids or times, or by correlation id",
            param_hint="--latest",
        )
    options["limit"] = limit
    found = anyio.run(_read, pattern, options, latest)
    for message in found:
        print_message(message, as_json=as_json)
    if not found and not as_json:
        where = "" if correlation_id is None else f" with the correlation id {correlation_id}"
        err.print(f"There is no message under {pattern}{where}.", style="dim", soft_wrap=True)


async def _read(pattern: str, options: ReadOptions, latest: bool) -> list[Message[Any]]:
    async with connect(find_settings()) as stream:
        if latest:
            return await stream.latest_of_each(pattern, limit=options["limit"])
        return await stream.read(pattern, **options)
