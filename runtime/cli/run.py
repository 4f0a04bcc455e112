"""`runtime run`: workers for the agents in files, folders and modules, in one process or in several."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from runtime.agent.agent import Agent
from runtime.agent.discovery import discover
from runtime.cli import streams
from runtime.cli.attempts import AttemptLines, Tell, write
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import (
    begin_log,
    err,
    export_telemetry,
    json_text,
    logs_are_json,
    print_handlers,
    print_last_words,
    start_logs,
)
from runtime.errors import DiscoveryError
from runtime.extras import need
from runtime.settings import Settings
from runtime.worker import event_loop
from runtime.worker.execution.attempt import Observer
from runtime.worker.poison import PoisonMessages
from runtime.worker.signals import heeded
from runtime.worker.supervisor import Child, Supervisor
from runtime.worker.worker import PLACE_LOG, Attempt, Worker

if TYPE_CHECKING:
    from runtime.worker.webhook_forwarder import WebhookForwarder


def run(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH", help="Python files, folders of them, modules, or one agent: shop.agents:writer."
        ),
    ] = None,
    webhooks: Annotated[
        bool,
        typer.Option(
            "--webhooks", help="Post for the webhooks of `runtime webhooks add` too; with no PATH, only that."
        ),
    ] = False,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Handlers running at once, where they do not say.")
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Let a Supabase Database Webhook wake the agents too; its secret is RUNTIME_WEBHOOK_SECRET.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Answer /metrics, /healthz and /readyz at this port; more processes take the ports that follow.",
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option("--processes", "-p", metavar="N", min=1, help="How many processes run all the agents."),
    ] = 1,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Give each agent as many processes of its own.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--agent", "-a", metavar="NAME", help="Only this agent; may be repeated."),
    ] = None,
    once: Annotated[
        int | None,
        typer.Option(
            metavar="MESSAGE",
            min=1,
            help="Handle this message here, once, and print what would be written: nothing is taken or written.",
        ),
    ] = None,
    handler_name: Annotated[
        str | None,
        typer.Option("--handler", metavar="NAME", help="With --once, which handler, where several match."),
    ] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=JSON", help="With --once, the answer to a request; may be repeated."),
    ] = None,
    debugs: Annotated[
        bool, typer.Option("--pdb", help="With --once, open the debugger where the handler fails.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no lines about attempts.")] = False,
    as_json: Json = False,
    poison_messages: Annotated[PoisonMessages, typer.Option(hidden=True)] = PoisonMessages.ALSO,
    is_supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
    attempts_to: Annotated[int | None, typer.Option("--attempts-to", hidden=True)] = None,
) -> None:
    """Run agents until Ctrl-C or SIGTERM; then running handlers finish, and nothing is lost.

    With several processes, one that dies is started again, and a message that crashed its process twice runs alone in
    one more, the quarantine process.
    """
    if not paths and not webhooks:
        raise typer.BadParameter("Missing argument PATH: say which agents to run, or --webhooks")
    streams.go_on()
    agents = _chosen(discover(paths or []), only)
    _tune_interpreter()
    begin_log(as_json=as_json)
    settings = find_settings(waits=True, concurrency=concurrency, webhook=webhook, metrics_port=metrics_port)
    is_json_log = as_json or logs_are_json(settings.log_format)
    if once is not None:
        from runtime.cli.once import answers_of, run_once

        if debugs and as_json:
            raise typer.BadParameter("the debugger is for a person: leave --json or --pdb out")
        start_logs(settings.log_level, as_json=as_json)
        work = partial(
            run_once, agents, settings, once,
            name=handler_name, answers=answers_of(answer or ()), debugs=debugs, as_json=as_json,
        )  # fmt: skip
        raise typer.Exit(event_loop.run(work))
    if handler_name or answer or debugs:
        raise typer.BadParameter("--handler, --answer and --pdb belong to --once MESSAGE")
    start_logs(settings.log_level, as_json=is_json_log)
    if processes > 1 or isolate:
        if webhook is not None:
            raise typer.BadParameter("a port has one owner: give --webhook to a `runtime run` of one process")
        _check_extras(settings)
        options = [
            *(["--concurrency", str(concurrency)] if concurrency else []),
            *(["--quiet"] if quiet else []),
            *(["--json"] if as_json else []),
        ]
        supervisor = Supervisor(
            _children(paths or [], agents, webhooks, processes, isolate, options, settings.metrics_port),
            drain_seconds=settings.drain_seconds,
        )
        raise typer.Exit(anyio.run(_supervise, supervisor))
    if settings.telemetry:
        export_telemetry()
    tell = _teller(attempts_to)
    lines = AttemptLines(tell)
    observer = None if quiet else partial(_tell_json, tell) if as_json else lines
    crew: list[Worker | WebhookForwarder] = []
    if agents:
        crew.append(Worker(agents, settings, observer=observer, poison_messages=poison_messages))
    if webhooks:
        crew.append(_webhook_forwarder(settings, observer, poison_messages, is_alone=not agents))
    if not is_json_log and not is_supervised:
        print_handlers(handler for each in crew if isinstance(each, Worker) for handler in each.handlers)
    # `runtime dev` has said where the stream is, and why it ends this process.
    is_quiet = attempts_to is not None
    if is_quiet:
        logging.getLogger(PLACE_LOG).setLevel(logging.WARNING)
    signal_number = event_loop.run(_run, crew, is_supervised, is_quiet, settings.drain_seconds)
    lines.flush()
    if signal_number is not None:
        raise typer.Exit(128 + signal_number)


def _check_extras(settings: Settings) -> None:
    """Raise a SettingsError if a library is missing without which each of several processes would end."""
    if settings.telemetry:
        need("RUNTIME_TELEMETRY", "otel", "opentelemetry.exporter.otlp.proto.http")
    if settings.metrics_port is not None:
        need("RUNTIME_METRICS_PORT", "serve", "prometheus_client")
    if settings.webhook is not None:
        need("RUNTIME_WEBHOOK", "serve", "uvicorn")


def _webhook_forwarder(
    settings: Settings, observer: Observer | None, poison_messages: PoisonMessages, *, is_alone: bool
) -> "WebhookForwarder":
    """Return the forwarder of webhooks; beside agents, the agents' worker has the ports."""
    from runtime.worker.webhook_forwarder import WebhookForwarder

    if not is_alone:
        settings = settings.model_copy(update={"metrics_port": None, "webhook": None})
    return WebhookForwarder(settings, observer=observer, poison_messages=poison_messages)


def _tune_interpreter() -> None:
    """Shorten the thread switch interval, and exempt imported modules from garbage collection."""
    # A computing handler holds the interpreter for a whole interval, 5 ms by default, and delays every answer.
    sys.setswitchinterval(0.001)
    # Imported modules live as long as the process: no collection needs to visit them.
    gc.collect()
    gc.freeze()


def _chosen(agents: list[Agent], names: Sequence[str] | None) -> list[Agent]:
    """Return the agents of these names, or all of them."""
    if not names:
        return agents
    known = {agent.name for agent in agents}
    if unknown := sorted(set(names) - known):
        raise DiscoveryError(f"There is no agent {', '.join(unknown)} here, only {', '.join(sorted(known))}.")
    return [agent for agent in agents if agent.name in names]


def _children(
    paths: Sequence[str],
    agents: Sequence[Agent],
    webhooks: bool,
    processes: int,
    isolate: bool,
    options: Sequence[str],
    metrics_port: int | None,
) -> list[Child]:
    """Return the worker processes and the quarantine process."""
    command = [sys.executable, "-m", "runtime", "run", "--supervised", *options]
    posting = ["--webhooks"] if webhooks else []
    chosen = [*paths, *(option for agent in agents for option in ("--agent", agent.name)), *posting]
    groups = [("worker", chosen)]
    if isolate:
        groups = [(agent.name, [*paths, "--agent", agent.name]) for agent in agents]
        groups += [("webhooks", posting)] if webhooks else []
    children = [
        Child(
            f"{name}-{number}" if processes > 1 else name,
            [*command, *which, "--poison-messages", PoisonMessages.NEVER],
        )
        for name, which in groups
        for number in range(1, processes + 1)
    ]
    children.append(
        Child("quarantine", [*command, *chosen, "--poison-messages", PoisonMessages.ONLY], is_quarantine=True)
    )
    if metrics_port is None:
        return children
    # Each process has its own port.
    return [
        replace(child, command=[*child.command, "--metrics-port", str(metrics_port and metrics_port + place)])
        for place, child in enumerate(children)
    ]


async def _supervise(supervisor: Supervisor) -> int:
    """Run until a signal; a second one does not wait for handlers. Return the exit code."""
    hurry: list[int] = []
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_pass_on, signals, supervisor, hurry)
            await supervisor.run()
            tasks.cancel_scope.cancel()
    return 128 + hurry[0] if hurry else 1 if supervisor.given_up else 0


async def _pass_on(signals: AsyncIterator[signal.Signals], supervisor: Supervisor, hurry: list[int]) -> None:
    async for number in signals:
        if supervisor.is_stopping:
            hurry.append(number)
            supervisor.hurry()
        else:
            err.print(f"{number.name}: every process finishes what it runs. Once more to quit at once.")
            supervisor.stop()


async def _run(
    crew: "Sequence[Worker | WebhookForwarder]", is_supervised: bool, is_quiet: bool, drain_seconds: float
) -> int | None:
    """Run until a signal; return the number of a second one, which does not wait for handlers."""
    hurried: list[int] = []
    soon = asyncio.get_running_loop().call_soon_threadsafe

    def stop(number: signal.Signals) -> None:
        for each in crew:
            each.stop()
        if not is_supervised and not is_quiet:
            err.print(
                f"{number.name}: no new work is taken; running handlers finish. Once more to quit at once.",
                soft_wrap=True,
            )

    async with anyio.create_task_group() as tasks:

        def hurry(number: signal.Signals) -> None:
            hurried.append(number)
            soon(tasks.cancel_scope.cancel)

        with heeded(stop, hurry, drain_seconds=drain_seconds, say=print_last_words):
            if is_supervised and os.name == "posix":
                tasks.start_soon(_end_with_supervisor, crew)
            async with anyio.create_task_group() as working:
                for each in crew:
                    working.start_soon(each.run)
            tasks.cancel_scope.cancel()
    return hurried[0] if hurried else None


async def _end_with_supervisor(crew: "Sequence[Worker | WebhookForwarder]") -> None:
    """Stop when standard input is closed: the supervisor has ended, perhaps by SIGKILL."""
    await anyio.wait_readable(sys.stdin)
    for each in crew:
        each.stop()


def _teller(descriptor: int | None) -> Tell:
    """Return what lines about attempts are told to: `runtime dev`, through a pipe, or standard output."""
    if descriptor is None:
        return write
    from runtime.cli.message_first import AttemptTeller

    return AttemptTeller(descriptor)


def _tell_json(tell: Tell, attempt: Attempt) -> None:
    tell(attempt.delivery.message.id, json_text(attempt_json(attempt)) + "\n")


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt as JSON data, without the value, which may be private."""
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
