"""`runtime drain`: handle everything that is due, and end; for a scheduler's jobs."""

from dataclasses import asdict
from typing import Annotated

import typer

from runtime.agent.agent import Agent
from runtime.agent.discovery import discover
from runtime.cli import streams
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import begin_log, logs_are_json, print_json, start_logs
from runtime.settings import Settings
from runtime.worker import event_loop
from runtime.worker.serverless import Drained
from runtime.worker.serverless import drain as drain_agents


def drain(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Agents, as for `runtime run`.")],
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="Seconds it may take; RUNTIME_BUDGET_SECONDS by default.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run what is due for these agents, timers too, and end when nothing is, or when the time is up."""
    streams.go_on()
    begin_log(as_json=as_json)
    settings = find_settings()
    start_logs(settings.log_level, as_json=as_json or logs_are_json(settings.log_format))
    drained = event_loop.run(_drain, discover(paths), settings, budget)
    if as_json:
        print_json(asdict(drained))
        return
    then = (
        "nothing waits"
        if drained.next_due_seconds is None
        else f"the next is due in {drained.next_due_seconds:.0f} s"
    )
    left = "an unknown number" if drained.left is None else drained.left
    typer.echo(f"{drained.handled} handled, {drained.failed} failed, {left} left; {then}")


async def _drain(agents: list[Agent], settings: Settings, budget: float | None) -> Drained:
    return await drain_agents(agents, settings, budget=budget)
