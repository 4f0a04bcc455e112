"""`runtime top`: running and waiting deliveries, as a table that updates itself and obeys keys."""

import math
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import anyio
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from runtime.cli import figures
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import out, plain, print_json, start_logs
from runtime.cli.tables import Rows
from runtime.cli.times import counted
from runtime.cli.top_view import TopView
from runtime.client.stream import Stream, connect
from runtime.errors import StoreUnavailable
from runtime.settings import Settings

# An arrow or function key is a sequence of several characters.
_KEY: Final = re.compile(r"\x1b[\[O][0-9;]*.|.", re.DOTALL)


def top(
    every: Annotated[
        float,
        typer.Option(
            "--every", "-d", metavar="SECONDS", min=0.2, max=3600, help="Seconds between two looks."
        ),
    ] = 2.0,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", metavar="N", min=1, help="End after so many looks; without it, never."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show subscriptions and workers, the busiest first, until q or Ctrl-C.

    Keys: s sorts otherwise, / filters by name or pattern, p pauses, a shows those without workers and work too,
    q quits.
    """
    settings = find_settings()
    start_logs("warning" if settings.log_level == "info" else settings.log_level, as_json=as_json)
    is_screen = out.is_terminal and not as_json and count is None
    anyio.run(_screen if is_screen else _lines, settings, every, count, as_json)


async def _lines(settings: Settings, every: float, count: int | None, as_json: bool) -> None:
    """Print each look."""
    async with connect(settings) as stream:
        looks = 0
        while True:
            stats = await stream.stats()
            if as_json:
                print_json({"place": stream.place, **stats})
            else:
                out.print(picture(stream.place, stats, TopView(is_whole=True)))
            looks += 1
            if looks == count:
                return
            await anyio.sleep(every)


async def _screen(settings: Settings, every: float, *_: Any) -> None:
    """Show the last look on the whole screen until a key ends it."""
    view, shown, away = TopView(height=out.height), dict[str, Any](), ""
    async with connect(settings) as stream:
        shown = await stream.stats()
        with Live(console=out, screen=True, auto_refresh=False) as live, _unbuffered_keys() as descriptor:
            async with anyio.create_task_group() as tasks:

                def draw() -> None:
                    view.height = out.height
                    live.update(picture(stream.place, shown, view, away), refresh=True)

                async def obey() -> None:
                    async for key in _keys(descriptor):
                        view.press(key)
                        if view.is_over:
                            tasks.cancel_scope.cancel()
                            return
                        draw()

                if descriptor is not None:
                    tasks.start_soon(obey)
                while True:
                    draw()
                    await anyio.sleep(every)
                    if not view.is_paused:
                        shown, away = await _look(stream, shown)


async def _look(stream: Stream, before: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the figures; if the store is away, the last ones and why."""
    try:
        return await stream.stats(), ""
    except StoreUnavailable as error:
        return before, str(error)


@contextmanager
def _unbuffered_keys() -> Iterator[int | None]:
    """Yield the descriptor of a terminal that hands over each key at once; None where there is none."""
    if os.name != "posix" or not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _keys(descriptor: int | None) -> AsyncIterator[str]:
    """Yield keys as they are pressed."""
    while descriptor is not None:
        await anyio.wait_readable(descriptor)
        typed = os.read(descriptor, 256).decode(errors="ignore")
        if not typed:
            return
        for key in _KEY.findall(typed):
            yield key


def picture(
    place: str, stats: dict[str, Any], view: TopView, away: str = "", console: Console = out
) -> Group:
    """Return the tables, subscriptions and workers, as this view asks for them."""
    done = sum(each["done_last_minute"] for each in stats["subscriptions"])
    dead = counted(stats["dead_letters"], "dead letter", is_about=stats.get("dead_about", False))
    lines = [
        Text.assemble(
            (plain(place), "bold"),
            f"  {counted(len(stats['workers']), 'worker')}, {done / 60:.1f} done a second, {dead}",
        )
    ]
    if away:
        lines.append(Text(f"The store is away, these are the last figures: {away}", "red"))
    if spent := figures.spent_today(stats["subscriptions"]):
        lines.append(Text(spent))
    if view.height is not None:
        lines.append(Text(view.legend(), style="dim"))
    statuses = stats.get("statuses", ())
    # A table of statuses has a head, and a blank line above.
    below = len(stats["workers"]) + (len(statuses) + 2 if statuses else 0)
    whole, rows = _with_tables(lines, stats, view, below)
    if view.height is not None and (over := _lines_of(whole, console) - view.height) > 0:
        # In a narrow terminal a row takes several lines.
        lines_of_row = max(1, _lines_of(_subscriptions(rows), console) // max(1, len(rows)))
        whole, _ = _with_tables(lines, stats, view, below + math.ceil(over / lines_of_row))
    return whole


def _lines_of(shown: RenderableType, console: Console) -> int:
    return len(console.render_lines(shown, pad=False))


def _with_tables(
    lines: list[Text], stats: dict[str, Any], view: TopView, below: int
) -> tuple[Group, list[dict[str, Any]]]:
    """Return these lines with the tables, and the subscriptions shown; `below` lines are kept for the rest."""
    shown, left_out = view.choose(stats["subscriptions"], below)
    statuses = stats.get("statuses", ())
    parts: list[RenderableType] = [*lines, Text(), _subscriptions(shown)]
    if left_out:
        parts.append(Text(left_out, style="dim"))
    if stats["workers"]:
        workers = sorted(stats["workers"], key=lambda each: -each["details"].get("cpu_percent", 0))
        parts += [Text(), figures.table_of_workers(workers)]
    if statuses:
        parts += [Text(), figures.table_of_statuses(statuses)]
    return Group(*parts), shown


def _subscriptions(subscriptions: list[dict[str, Any]]) -> Rows:
    table = Rows(
        "subscription", figures=("workers", *figures.HEADS, "done/s", "failed/min"), texts=("state",)
    )
    for each in subscriptions:
        failed = each["failed_last_minute"]
        table.add(
            each["name"],
            figures.workers(each),
            *figures.backlog(each),
            f"{each['done_last_minute'] / 60:.1f}",
            Text(f"{failed:,}", style="red" if failed else ""),
            Text("paused" if each["paused"] else figures.held(each), style="yellow"),
        )
    return table
