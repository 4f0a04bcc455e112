"""`runtime run`: one worker for the agents in files, folders and modules."""

import signal
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import typer
from anyio import CancelScope
from rich.text import Text

from runtime.cli.output import err, print_json, print_line, start_logs
from runtime.cli.place import find_settings
from runtime.discovery import discover
from runtime.worker import Attempt, Worker

_OUTCOME_STYLES = {"done": "green", "later": "yellow", "failed": "yellow", "dead": "bold red"}


def run(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH", help="Python files, folders of them, modules, or one agent: shop.agents:writer."
        ),
    ],
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Handlers running at once, where they do not say.")
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Let a Supabase Database Webhook wake the agents too; its secret is RUNTIME_WEBHOOK_SECRET.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no line per attempt.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print attempts and the log as JSON, one object per line.")
    ] = False,
) -> None:
    """Run agents until Ctrl-C or SIGTERM; then running handlers finish, and nothing is lost."""
    agents = discover(paths)
    settings = find_settings(concurrency=concurrency, webhook=webhook)
    start_logs(settings.log_level, as_json=as_json)
    worker = Worker(agents, settings, observer=None if quiet else _print_json if as_json else _print)
    if not as_json:
        for handler in worker.handlers:
            err.print(f"{handler.name} for {', '.join(handler.patterns)}", style="dim")
    signal_number = anyio.run(_run, worker)
    if signal_number is not None:
        raise typer.Exit(128 + signal_number)


async def _run(worker: Worker) -> int | None:
    """Run until a signal; returns the number of a second one, which does not wait for handlers."""
    hurry: list[int] = []
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey, signals, worker, tasks.cancel_scope, hurry)
            await worker.run()
            tasks.cancel_scope.cancel()
    return hurry[0] if hurry else None


async def _obey(
    signals: AsyncIterator[signal.Signals], worker: Worker, scope: CancelScope, hurry: list[int]
) -> None:
    async for number in signals:
        if worker.state == "stopping":
            hurry.append(number)
            scope.cancel()
            return
        err.print(f"{number.name}: no new work is taken; running handlers finish. Once more to quit at once.")
        worker.stop()


def _print(attempt: Attempt) -> None:
    message, report = attempt.delivery.message, attempt.report
    outcome = report.outcome or "done"
    line = Text.assemble(
        (f"#{message.id:<6}", "cyan"),
        " ",
        (f"{message.key:<20}", "bold"),
        f"  {attempt.handler.name:<24}  ",
        (f"{outcome:<6}", _OUTCOME_STYLES.get(outcome, "")),
        (f"  {milliseconds(report.seconds)}", "dim"),
    )
    if message.attempt > 1:
        line.append(f"  attempt {message.attempt}", style="yellow")
    print_line(line)


def _print_json(attempt: Attempt) -> None:
    print_json(attempt_json(attempt))


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """An attempt as JSON data: never the value, which may be private."""
    message, report = attempt.delivery.message, attempt.report
    return {
        "message": message.id,
        "key": message.key,
        "handler": attempt.handler.name,
        "attempt": message.attempt,
        "outcome": report.outcome or "done",
        "began": attempt.began,
        "seconds": report.seconds,
        "emitted": len(report.emits),
        "error": report.error,
    }


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds in a fixed width."""
    return f"{seconds * 1000:8.1f} ms"
