"""`runtime tail`: messages as they are written."""

from datetime import datetime
from typing import Annotated, Any

import anyio
import typer

from runtime.broadcast import Broadcast
from runtime.cli import streams
from runtime.cli.completion import patterns
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import print_broadcast, print_message, start_logs
from runtime.cli.times import moment
from runtime.client.stream import Stream, connect
from runtime.keys import check_pattern
from runtime.settings import Settings


def tail(
    pattern: Annotated[
        str, typer.Argument(autocompletion=patterns, help="A key, or a pattern: task.* or task.>.")
    ] = ">",
    count: Annotated[
        int,
        typer.Option("-n", "--lines", metavar="N", min=0, max=10_000, help="Begin with the last so many."),
    ] = 10,
    since: Annotated[
        str | None,
        typer.Option(metavar="ID|TIME", help="Begin after this id instead, or at a time: 10m, or a date."),
    ] = None,
    broadcasts: Annotated[
        bool, typer.Option("--broadcasts", help="Print unstored messages as well: tokens, progress.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print messages as they are written, until Ctrl-C."""
    check_pattern(pattern)
    start = None if since is None else int(since) if since.isdecimal() else moment(since)
    settings = find_settings()
    start_logs("warning" if settings.log_level == "info" else settings.log_level, as_json=as_json)
    anyio.run(_tail, settings, pattern, count, start, broadcasts, as_json)


async def _tail(*arguments: Any) -> None:
    """Print messages until the reader of the output leaves."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(streams.watch_reader)
        await _print(*arguments)
        tasks.cancel_scope.cancel()


async def _print(
    settings: Settings,
    pattern: str,
    count: int,
    start: int | datetime | None,
    broadcasts: bool,
    as_json: bool,
) -> None:
    async with connect(settings) as stream:
        since = await _last_before(stream, start) if isinstance(start, datetime) else start
        if since is None:
            last = await stream.read(pattern, limit=max(count, 1))
            since = last[-1].id if last else 0
            for message in last[len(last) - count :] if count else ():
                print_message(message, as_json=as_json)
        if not broadcasts:
            async for message in stream.listen(pattern, since=since):
                print_message(message, as_json=as_json)
            return
        async for heard in stream.listen(pattern, since=since, broadcasts=True):
            if isinstance(heard, Broadcast):
                print_broadcast(heard, as_json=as_json)
            else:
                print_message(heard, as_json=as_json)


async def _last_before(stream: Stream, moment: datetime) -> int:
    """Return the id after which the messages of this moment and later begin: ids rise with the time of writing."""
    last = await stream.read(">", limit=1)
    low, high = 0, last[-1].id if last else 0
    # Messages up to the id `low` are older than the time, those after `high` are not.
    while low < high:
        middle = (low + high) // 2
        following = await stream.read(">", after=middle, limit=1)
        if following and following[0].created_at < moment:
            low = following[0].id
        else:
            high = middle
    return low
