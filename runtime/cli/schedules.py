"""`runtime schedules`: the timers, with their last and next ticks."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import anyio
import typer
from rich.text import Text

from runtime.agent.schedule import readable, upcoming
from runtime.cli import figures
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import print_found
from runtime.cli.tables import Rows
from runtime.cli.times import ago
from runtime.client.stream import connect


def schedules(
    count: Annotated[
        int, typer.Option("--next", "-n", metavar="N", min=1, help="How many of the next times to show.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """List the timers of all agents: their schedule, the last slot, the next ones, and whether a worker serves them."""
    found = anyio.run(_schedules)
    now = datetime.now(UTC)
    for each in found:
        slots = upcoming(each["spec"], datetime.fromisoformat(each["last_slot"]), now, count)
        each["next"] = [slot.isoformat() for slot in slots]
    print_found(
        found,
        as_json=as_json,
        table=_table,
        nothing='No agent has a timer: @agent.every("5m"), @agent.cron("0 7 * * mon-fri")',
    )


async def _schedules() -> list[dict[str, Any]]:
    async with connect(find_settings()) as stream:
        return await stream.operations.schedules()


def _table(found: list[dict[str, Any]]) -> Rows:
    table = Rows("timer", figures=("last slot", "workers"), texts=("state", "next", "schedule", "key"))
    for each in found:
        table.add(
            each["name"],
            ago(each["last_slot"]),
            figures.workers(each),
            Text("paused" if each["paused"] else "", style="yellow"),
            ", ".join(_when(datetime.fromisoformat(slot)) for slot in each["next"]),
            readable(each["spec"]),
            "" if each["key"] == f"timer.{each['name']}" else each["key"],
        )
    return table


def _when(slot: datetime) -> str:
    """Return a future time as local time."""
    is_soon = slot - datetime.now(UTC) < timedelta(days=6)
    return f"{slot.astimezone():{'%a %H:%M:%S' if is_soon else '%d %b %Y %H:%M'}}"
