"""`runtime status`: workers, backlog and dead letters."""

from typing import Any

import anyio
from rich.text import Text

from runtime.cli import figures
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import out, plain, print_json
from runtime.cli.tables import Rows
from runtime.cli.times import counted, duration
from runtime.client.queries import two_figures
from runtime.client.stream import connect


def status(
    as_json: Json = False,
) -> None:
    """Show the subscriptions with what waits for them, the workers, and what needs a person."""
    place, stats = anyio.run(_stats)
    if as_json:
        print_json({"place": place, **stats})
        return
    out.print(f"{place}: {_messages(stats)}")
    if stats["subscriptions"]:
        out.print()
        out.print(_subscriptions(stats))
    long = list(figures.long_work(stats["subscriptions"]))
    if long:
        out.print()
    for line in long:
        out.print(Text(plain(line), style="dim"))
    if spent := figures.spent_today(stats["subscriptions"]):
        out.print()
        out.print(spent)
    if stats["workers"]:
        out.print()
        out.print(figures.table_of_workers(stats["workers"]))
    if statuses := stats.get("statuses"):
        out.print()
        out.print(figures.table_of_statuses(statuses))
    advised = advice(stats)
    if advised:
        out.print()
    for line in advised:
        out.print(Text.assemble(("! ", "yellow"), line))


def _messages(stats: dict[str, Any]) -> str:
    count = stats["messages"]
    if not count:
        return "no messages"
    if stats["messages_about"]:
        return f"about {two_figures(count):,} messages, the last is #{stats['last_message']}"
    return f"{counted(count, 'message')}, the last is #{stats['last_message']}"


async def _stats() -> tuple[str, dict[str, Any]]:
    async with connect(find_settings()) as stream:
        return stream.place, await stream.stats()


def _subscriptions(stats: dict[str, Any]) -> Rows:
    table = Rows("subscription", figures=("workers", *figures.HEADS), texts=("state", "patterns"))
    for each in stats["subscriptions"]:
        state = "paused" if each["paused"] else figures.held(each) if each["settled"] else "settling"
        table.add(
            each["name"],
            figures.workers(each),
            *figures.backlog(each),
            Text(state, style="yellow"),
            " ".join(each["patterns"]),
        )
    return table


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
    lines += [
        f"{each['name']} has spent its budget of {figures.budget_text(each['budget'])}: {figures.held(each)}, or until "
        "a larger one is declared"
        for each in stats["subscriptions"]
        if each.get("held") and each["held"]["by"] == "budget"
    ]
    if stats["dead_letters"]:
        dead = counted(stats["dead_letters"], "dead letter", is_about=stats.get("dead_about", False))
        lines.append(
            f"{dead}: `runtime dead list` shows what failed, and when its cause is mended, `runtime dead redrive` "
            "delivers it again"
        )
    if not stats["broadcast"]:
        lines.append(
            "Realtime broadcast from the database is not there; postgres_changes and polling work without it."
        )
    return lines
