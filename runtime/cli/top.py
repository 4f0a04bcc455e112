"""`runtime top`: running and waiting deliveries, as a table that updates itself."""

from contextlib import nullcontext
from typing import Annotated, Any

import anyio
import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from runtime.cli.find_stream import find_settings
from runtime.cli.output import Rows, out, plain, print_json, start_logs
from runtime.cli.times import amount, duration
from runtime.client.stream import connect
from runtime.errors import StoreUnavailable
from runtime.settings import Settings

_LAG_SECONDS = 1.0


def top(
    every: Annotated[
        float, typer.Option("--every", "-d", min=0.2, max=3600, help="Seconds between two looks.")
    ] = 2.0,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="End after so many looks; without it, never.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per look.")] = False,
) -> None:
    """Show subscriptions and workers, the busiest first, until Ctrl-C."""
    settings = find_settings()
    start_logs("warning" if settings.log_level == "info" else settings.log_level, as_json=as_json)
    anyio.run(_top, settings, every, count, as_json)


async def _top(settings: Settings, every: float, count: int | None, as_json: bool) -> None:
    shown: dict[str, Any] = {}
    # A file or pipe gets each picture; a terminal updates one.
    is_live = out.is_terminal and not as_json
    async with connect(settings) as stream:
        with (
            Live(console=out, screen=count is None, auto_refresh=False) if is_live else nullcontext() as live
        ):
            looks = 0
            while True:
                away = ""
                try:
                    shown = await stream.stats()
                except StoreUnavailable as error:
                    if not shown:
                        raise
                    away = str(error)
                if as_json:
                    print_json({"place": stream.place, **shown})
                elif live is not None:
                    live.update(picture(stream.place, shown, away), refresh=True)
                else:
                    out.print(picture(stream.place, shown, away))
                looks += 1
                if looks == count:
                    return
                await anyio.sleep(every)


def picture(place: str, stats: dict[str, Any], away: str = "") -> Group:
    """Return the tables: subscriptions, the busiest first, and workers."""
    done = sum(each["done_last_minute"] for each in stats["subscriptions"])
    dead = amount(stats["dead_letters"], is_about=stats.get("dead_about", False))
    head = Text.assemble(
        (plain(place), "bold"),
        f"  {len(stats['workers'])} workers, {done / 60:.1f} done a second, {dead} dead letters",
    )
    lines = (
        [head] if not away else [head, Text(f"The store is away, these are the last figures: {away}", "red")]
    )
    return Group(*lines, Text(), _subscriptions(stats["subscriptions"]), Text(), _workers(stats["workers"]))


def _subscriptions(subscriptions: list[dict[str, Any]]) -> Rows:
    table = Rows(box=None, header_style="dim", pad_edge=False)
    table.add_column("subscription")
    for name in ("done/s", "failed/min", "waiting", "running", "scheduled", "dead", "lag", "workers"):
        table.add_column(name, justify="right")
    busiest = sorted(
        subscriptions, key=lambda each: (-each["done_last_minute"], -each["waiting"], each["name"])
    )
    for each in busiest:
        lag, failed = each["lag_seconds"], each["failed_last_minute"]
        table.add_row(
            Text.assemble(each["name"], (" paused" if each["paused"] else "", "yellow")),
            f"{each['done_last_minute'] / 60:.1f}",
            Text(str(failed), style="red" if failed else ""),
            amount(each["waiting"], is_about=each.get("about", False)),
            str(each["running"]),
            amount(each["scheduled"], is_about=each.get("about", False)),
            Text(
                amount(each["dead"], is_about=each.get("dead_about", False)),
                style="red" if each["dead"] else "",
            ),
            "" if lag is None else duration(lag),
            Text(str(each["workers"]), style="" if each["workers"] else "yellow"),
        )
    return table


def _workers(workers: list[dict[str, Any]]) -> Rows:
    table = Rows(box=None, header_style="dim", pad_edge=False)
    table.add_column("worker")
    for name in ("running", "cpu", "memory", "loop lag", "seen"):
        table.add_column(name, justify="right")
    for each in sorted(workers, key=lambda each: -each["details"].get("cpu_percent", 0)):
        details = each["details"]
        lag = details.get("loop_lag_seconds")
        table.add_row(
            plain(each["name"]),
            str(each["running"]),
            f"{details['cpu_percent']:.0f} %" if "cpu_percent" in details else "",
            f"{details['rss_bytes'] / 2**20:.0f} MiB" if "rss_bytes" in details else "",
            "" if lag is None else Text(f"{lag:.2f} s", style="red" if lag > _LAG_SECONDS else ""),
            f"{duration(each['seen_seconds'])} ago",
        )
    return table
