"""`runtime subscriptions`: what listens, how far behind it is, and what has no worker."""

from typing import Annotated, Any

import anyio
import typer
from rich.text import Text

from runtime.cli.completion import handlers
from runtime.cli.confirm import DryRun, Yes, confirm
from runtime.cli.errors import Commands
from runtime.cli.find_stream import find_settings
from runtime.cli.output import Rows, out, plain, print_found, print_json
from runtime.cli.times import ago, amount, duration
from runtime.client.stream import connect

app = typer.Typer(
    cls=Commands, help="The subscriptions: backlog, lag, rate, last error, and who serves them."
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.callback(invoke_without_command=True)
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the subscriptions."""
    if context.invoked_subcommand is not None:
        return
    found = anyio.run(_subscriptions)
    print_found(found, as_json=as_json, table=_table, nothing="No agent has subscribed yet: runtime run PATH")


@app.command()
def remove(
    subscription: Annotated[str, typer.Argument(autocompletion=handlers, help="Its name: agent.handler.")],
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove a subscription that no worker serves any more, with what waits for it."""
    meant = anyio.run(_remove, subscription, True)
    if not dry_run:
        confirm(f"Remove {subscription} and the {meant['waiting']:,} deliveries that wait for it?", yes=yes)
        meant = anyio.run(_remove, subscription, False)
    if as_json:
        print_json(meant)
    else:
        verb = "removed" if meant["removed"] else "would go"
        out.print(f"{subscription} and {meant['waiting']:,} deliveries {verb}")


def _table(found: list[dict[str, Any]]) -> Rows:
    table = Rows(box=None, header_style="dim", pad_edge=False)
    table.add_column("subscription", no_wrap=True)
    table.add_column("patterns", overflow="fold")
    for name in ("workers", "waiting", "running", "scheduled", "dead", "lag", "per min"):
        table.add_column(name, justify="right")
    table.add_column("state")
    table.add_column("last error", overflow="ellipsis", no_wrap=True)
    for each in found:
        is_orphan, is_idle = not each["workers"], not each["waiting"] + each["scheduled"]
        table.add_row(
            each["name"],
            " ".join(each["patterns"]),
            Text(
                "none" if is_orphan else str(each["workers"]),
                style="red" if is_orphan and not is_idle else "",
            ),
            amount(each["waiting"], is_about=each.get("about", False)),
            f"{each['running']:,}",
            amount(each["scheduled"], is_about=each.get("about", False)),
            Text(
                amount(each["dead"], is_about=each.get("dead_about", False)),
                style="red" if each["dead"] else "",
            ),
            "" if each["lag_seconds"] is None else duration(each["lag_seconds"]),
            f"{each['done_last_minute']:,}",
            Text(state(each), style="yellow"),
            _error(each["last_error"]),
        )
    return table


def state(subscription: dict[str, Any]) -> str:
    """Return what holds a subscription up, in a word or two; empty if nothing does."""
    if subscription["paused"]:
        return "paused"
    if not subscription["settled"]:
        return "settling"
    if subscription["blocked"]:
        return f"{subscription['blocked']:,} keys blocked"
    total = subscription.get("concurrency_total")
    limits = (subscription.get("rate"), None if total is None else f"{total:,} at once")
    return ", ".join(limit for limit in limits if limit is not None)


def _error(error: dict[str, Any] | None) -> Text:
    if error is None:
        return Text("")
    return Text.assemble((f"{ago(error['at'])}: ", "dim"), plain(error["error"].split("\n")[0]))


async def _subscriptions() -> list[dict[str, Any]]:
    async with connect(find_settings()) as stream:
        found: list[dict[str, Any]] = (await stream.stats())["subscriptions"]
        return found


async def _remove(subscription: str, dry_run: bool) -> dict[str, Any]:
    async with connect(find_settings()) as stream:
        return await stream.operations.remove(subscription, dry_run=dry_run)
