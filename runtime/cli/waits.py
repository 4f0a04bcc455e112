"""`runtime waits`: what suspended handlers wait for."""

from typing import Annotated, Any

import anyio
import typer
from rich.text import Text

from runtime.cli.completion import handlers
from runtime.cli.figures import wait_text
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import plain, print_found
from runtime.cli.tables import Rows
from runtime.cli.times import ago, until
from runtime.client.stream import connect


def waits(
    subscription: Annotated[
        str | None,
        typer.Argument(autocompletion=handlers, help="Only those of this subscription: agent.handler."),
    ] = None,
    count: Annotated[
        int, typer.Option("-n", "--lines", metavar="N", min=1, max=10_000, help="At most so many.")
    ] = 100,
    as_json: Json = False,
) -> None:
    """List what handlers wait for, and since when: messages, and times."""
    print_found(
        anyio.run(_waits, subscription, count),
        as_json=as_json,
        table=_table,
        nothing='Nothing waits. A handler waits by `await context.wait_for("payment.settled")`.',
    )


async def _waits(subscription: str | None, count: int) -> list[dict[str, Any]]:
    async with connect(find_settings()) as stream:
        return await stream.operations.waits(subscription, count)


def _table(found: list[dict[str, Any]]) -> Rows:
    table = Rows("message", texts=("key", "subscription", "waits for", "since", "until"))
    for each in found:
        table.add(
            f"#{each['message']}",
            plain(each["message_key"] or ""),
            plain(each["subscription"]),
            plain(wait_text(each)) if each["pattern"] else Text(wait_text(each), style="dim"),
            ago(each["since"]),
            "for ever" if each["until"] is None else until(each["until"]),
        )
    return table
