"""`python -m tests.chaos`: faults on a seeded schedule; exit code 0 when nothing was lost and nothing was doubled."""

import json
import signal
import sys
import time
from collections.abc import Callable
from random import Random
from typing import Annotated

import anyio
import typer
from rich.console import Console

from tests.chaos.campaign import Campaign, Outcome
from tests.chaos.feature import Feature
from tests.chaos.features import FEATURES
from tests.chaos.report import as_json as to_json
from tests.chaos.report import show
from tests.chaos.stage import STORES, WAYS, Setting, Stage, staged
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
    feature: Annotated[
        list[str] | None,
        typer.Option(help="Only this beside the chain; may be repeated, and is none for the chain alone."),
    ] = None,
    huge_rows: Annotated[int, typer.Option(help="Rows in the huge transaction of each setting.")] = 50_000,
    work: Annotated[float, typer.Option(help="Seconds a handler may take.")] = 0.01,
    hold: Annotated[
        bool, typer.Option("--hold", help="Let each fault last, instead of many short strikes.")
    ] = False,
    settle: Annotated[
        float, typer.Option(help="Seconds in which all must be done after the last fault.")
    ] = 120,
    worker: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable of every worker; may be repeated."),
    ] = None,
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
    features = tuple(each for each in FEATURES if not feature or each.name in feature)
    if unknown := set(feature or ()) - {each.name for each in FEATURES} - {"none"}:
        names = ", ".join(each.name for each in FEATURES)
        raise typer.BadParameter(f"there is no feature {min(unknown)!r}; there are: {names}, none")
    seed = time.time_ns() % 2**32 if seed is None else seed
    console.print(f"seed {seed}")
    environment = {"CHAOS_WORK_SECONDS": str(work), **dict(each.split("=", 1) for each in worker or ())}

    def campaign(stage: Stage) -> Campaign:
        return Campaign(
            stage,
            Random(seed),
            messages,
            seconds,
            settings,
            fault or [],
            huge_rows,
            hold,
            settle,
            console.print,
        )

    outcome = anyio.run(play, campaign, environment, features)
    if outcome is None:
        raise SystemExit(128 + signal.SIGTERM)
    if as_json:
        print(json.dumps({"seed": seed, **to_json(outcome)}, indent=2))
    else:
        show(outcome, console)
    sys.exit(1 if outcome.problems else 0)


async def play(
    campaign: Callable[[Stage], Campaign], environment: dict[str, str], features: tuple[Feature, ...]
) -> Outcome | None:
    """Set the stage and run one campaign on it; where something went wrong, show what the workers said last.

    Returns:
        None where SIGTERM came first; the stage is cleared then too.
    """
    outcome = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_on_sigterm, tasks.cancel_scope)
        async with staged(environment, features) as stage:
            outcome = await campaign(stage).run()
            if outcome.problems:
                print(stage.last_words(), file=sys.stderr)
        tasks.cancel_scope.cancel()
    return outcome


async def _cancel_on_sigterm(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
