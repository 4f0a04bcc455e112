"""`runtime status`: workers, backlog and dead letters."""

from typing import Annotated, Any

import anyio
import typer
from rich.filesize import decimal
from rich.text import Text

from runtime.cli.find_stream import find_settings
from runtime.cli.output import Rows, out, plain, print_json
from runtime.cli.times import amount, duration
from runtime.client.stream import connect

_GONE_SECONDS = 60
_LAG_SECONDS = 1.0


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Show the subscriptions with what waits for them, the workers, and what needs a person."""
    place, stats = anyio.run(_stats)
    if as_json:
        print_json({"place": place, **stats})
        return
    out.print(f"{place}: about {stats['messages']:,} messages, the last is #{stats['last_message'] or 0}")
    if stats["subscriptions"]:
        out.print(_subscriptions(stats))
    if stats["workers"]:
        out.print(_workers(stats))
    for line in advice(stats):
        out.print(Text.assemble(("! ", "yellow"), line), soft_wrap=not out.is_terminal)


async def _stats() -> tuple[str, dict[str, Any]]:
    async with connect(find_settings()) as stream:
        return stream.place, await stream.stats()


def _subscriptions(stats: dict[str, Any]) -> Rows:
    # One blank between columns: a name and a pattern of usual length fit into 80 columns.
    table = Rows(box=None, header_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column("subscription")
    table.add_column("patterns", overflow="fold")
    for name in ("workers", "waiting", "running", "scheduled", "dead", "lag"):
        table.add_column(name, justify="right")
    table.add_column("")
    for each in stats["subscriptions"]:
        lag = each["lag_seconds"]
        state = "paused" if each["paused"] else "" if each["settled"] else "settling"
        table.add_row(
            each["name"],
            " ".join(each["patterns"]),
            str(each["workers"]),
            amount(each["waiting"], is_about=each.get("about", False)),
            str(each["running"]),
            amount(each["scheduled"], is_about=each.get("about", False)),
            Text(
                amount(each["dead"], is_about=each.get("dead_about", False)),
                style="red" if each["dead"] else "",
            ),
            "" if lag is None else duration(lag),
            Text(state, style="yellow"),
        )
    return table


def _workers(stats: dict[str, Any]) -> Rows:
    table = Rows(box=None, header_style="dim", pad_edge=False)
    for name in ("worker", "state", "woken by", "seen"):
        table.add_column(name)
    for name in ("running", "memory", "cpu", "loop lag"):
        table.add_column(name, justify="right")
    for each in stats["workers"]:
        details = each["details"]
        lag = details.get("loop_lag_seconds")
        table.add_row(
            plain(each["name"]),
            _state(each),
            ", ".join(plain(way) for way in each["announce"])
            or ("time" if details.get("is_quarantine") else "polling"),
            f"{duration(each['seen_seconds'])} ago",
            str(each["running"]),
            decimal(details["rss_bytes"]) if "rss_bytes" in details else "",
            f"{details['cpu_percent']:.0f} %" if "cpu_percent" in details else "",
            "" if lag is None else Text(f"{lag:.2f} s", style="red" if lag > _LAG_SECONDS else ""),
        )
    return table


def _state(worker: dict[str, Any]) -> str | Text:
    if worker["seen_seconds"] > _GONE_SECONDS:
        return Text("gone", style="red")
    if worker["details"].get("is_quarantine"):
        return "quarantine"
    return "busy" if worker["running"] else "idle"


def advice(stats: dict[str, Any]) -> list[str]:
    """Return what a person should know or do, a line each."""
    lines = [plain(warning) for warning in stats.get("warnings", ())]
    if not stats["subscriptions"]:
        lines.append("No agent has subscribed yet: runtime run PATH")
    unsettled = [each["name"] for each in stats["subscriptions"] if not each["settled"]]
    if unsettled:
        oldest = stats["oldest_transaction_seconds"]
        why = (
            f"a writing transaction has been open for {duration(oldest)} somewhere in this database cluster"
            if oldest
            else "a worker that runs it brings it there"
        )
        lines.append(f"Not settled, so nothing is taken yet: {', '.join(unsettled)}; {why}.")
    idle = [
        each["name"]
        for each in stats["subscriptions"]
        if not each["workers"] and not each["paused"] and each["waiting"] + each["scheduled"]
    ]
    if idle:
        lines.append(f"Work waits and no worker runs: {', '.join(idle)}")
    blocked = [each["name"] for each in stats["subscriptions"] if each["blocked"]]
    if blocked:
        lines.append(
            f"A dead letter holds up its key, until it is redriven or discarded: {', '.join(blocked)}"
        )
    paused = [each["name"] for each in stats["subscriptions"] if each["paused"]]
    if paused:
        lines.append(f"Paused, its work gathers: {', '.join(paused)}")
    if stats["dead_letters"]:
        dead = amount(stats["dead_letters"], is_about=stats.get("dead_about", False))
        lines.append(
            f"{dead} dead letters: `runtime dead list` shows them, and when their cause is "
            "mended, `runtime dead redrive` delivers them again"
        )
    if not stats["broadcast"]:
        lines.append(
            "Realtime broadcast from the database is not there; postgres_changes and polling work without it."
        )
    return lines
