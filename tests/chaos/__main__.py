"""`python -m tests.chaos`: faults on a seeded schedule; exit code 0 when nothing was lost and nothing was doubled."""

import json
import sys
import time
from random import Random
from typing import Annotated

import anyio
import typer
from rich.console import Console

from tests.chaos.campaign import Campaign, Outcome
from tests.chaos.report import as_json as to_json
from tests.chaos.report import show
from tests.chaos.stage import STORES, WAYS, Setting, staged
from tests.chaos.strikes import NAMES


def main(
    messages: Annotated[
        int, typer.Option(help="How many the stream shall hold in the end, at least.")
    ] = 6_000,
    seconds: Annotated[float, typer.Option(help="How long faults strike, over all settings.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Of the schedule.", show_default="drawn")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="Only this one, as in both/rest; may be repeated.")
    ] = None,
    huge_rows: Annotated[
        int, typer.Option(help="Rows in the huge transactions, over all settings.")
    ] = 50_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Have agents work while everything around them breaks, and count what was lost or done twice."""
    console = Console(stderr=as_json)
    if unknown := [name for name in fault or () if name not in NAMES]:
        raise typer.BadParameter(f"there is no fault {unknown[0]!r}; there are: {', '.join(NAMES)}")
    every = [Setting(ways, store) for ways in WAYS for store in STORES]
    settings = [each for each in every if not setting or str(each) in setting]
    if not settings:
        raise typer.BadParameter(f"there are these settings: {', '.join(map(str, every))}")
    seed = time.time_ns() % 2**32 if seed is None else seed
    console.print(f"seed {seed}")
    outcome = anyio.run(play, messages, seconds, seed, settings, fault or [], huge_rows, console.print)
    if as_json:
        print(json.dumps({"seed": seed, **to_json(outcome)}, indent=2))
    else:
        show(outcome, console)
    sys.exit(1 if outcome.problems else 0)


async def play(
    messages: int,
    seconds: float,
    seed: int,
    settings: list[Setting],
    names: list[str],
    huge_rows: int,
    say: object,
) -> Outcome:
    """Set the stage and run one campaign on it."""
    async with staged() as stage:
        campaign = Campaign(
            stage, Random(seed), messages, seconds, settings, names, huge_rows, say,  # type: ignore[arg-type]
        )  # fmt: skip
        outcome = await campaign.run()
        if outcome.problems:
            print(stage.log.read_text()[-6000:], file=sys.stderr)
        return outcome


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
