"""`runtime subscriptions`: what listens, how far behind it is, and what has no worker."""

from typing import Annotated, Any

import anyio
import typer
from rich.text import Text

from runtime.cli import figures
from runtime.cli.app import App
from runtime.cli.completion import handlers
from runtime.cli.confirm import confirm
from runtime.cli.find_stream import find_settings
from runtime.cli.options import DryRun, Json, Yes
from runtime.cli.output import out, plain, print_found, print_json
from runtime.cli.tables import Rows
from runtime.cli.times import ago, counted
from runtime.client.queries import dollars
from runtime.client.stream import connect

app = App(help="The subscriptions: backlog, lag, rate, last error, and who serves them.")


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
        confirm(f"Remove {subscription} and the {_deliveries(meant)} that wait for it?", yes=yes)
        meant = anyio.run(_remove, subscription, False)
    if as_json:
        print_json(meant)
    else:
        verb = "removed" if meant["removed"] else "would go"
        out.print(f"{subscription} and {_deliveries(meant)} {verb}")


def _deliveries(meant: dict[str, Any]) -> str:
    return counted(meant["waiting"], "delivery", "deliveries")


def _table(found: list[dict[str, Any]]) -> Rows:
    table = Rows(
        "subscription",
        figures=("workers", *figures.HEADS, "per min"),
        texts=("state", "patterns", "last error"),
        shortened=("last error",),
    )
    for each in found:
        table.add(
            each["name"],
            figures.workers(each),
            *figures.backlog(each),
            f"{each['done_last_minute']:,}",
            Text(state(each), style="yellow"),
            " ".join(each["patterns"]),
            _error(each["last_error"]),
        )
    return table


def state(subscription: dict[str, Any]) -> str:
    """Return what holds a subscription up, in a word or two; empty if nothing does."""
    if subscription["paused"]:
        return "paused"
    if not subscription["settled"]:
        return "settling"
    if held_back := subscription.get("held_back"):
        return ", ".join(
            f"{each['count']:,} due for version {plain(each['version'])} alone" for each in held_back
        )
    if held := figures.held(subscription):
        return held
    if subscription["blocked"]:
        return f"{counted(subscription['blocked'], 'key')} blocked"
    total = subscription.get("concurrency_total")
    budget = subscription.get("budget")
    limits = (
        subscription.get("rate"),
        None if total is None else f"{total:,} at once",
        budget
        and f"{'' if budget['per'] else dollars(budget['spent']) + ' of '}{figures.budget_text(budget)}",
    )
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
