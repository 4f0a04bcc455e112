"""`runtime serve`: agents behind HTTP, and other programs' webhooks as messages."""

import asyncio
import signal
from typing import Annotated

import anyio
import typer

from runtime.agent.discovery import discover_with_sources
from runtime.agent.secrets import check_exposed
from runtime.asgi import WebhookApp, sources_in
from runtime.cli import streams
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import (
    begin_log,
    err,
    export_telemetry,
    logs_are_json,
    print_handlers,
    print_json,
    print_last_words,
    start_logs,
)
from runtime.connection.environment import non_blank
from runtime.http_server import bound, is_loopback, served
from runtime.worker import event_loop
from runtime.worker.signals import heeded

PORT = 8322


def serve(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Agents and sources, as for `runtime run`."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = PORT,
    serverless: Annotated[
        bool, typer.Option("--serverless", help="Run no worker: agents do what is due when /drain is called.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve `runtime.asgi` until Ctrl-C or SIGTERM; then what runs finishes, and nothing is lost.

    POST /webhooks/NAME takes the webhooks of a source, POST /wake a Database Webhook as a wake-up of the agents, which
    run in this process; with --serverless they run only while POST /drain or /wake is answered. GET /approval is the
    page of signed links that decide approvals, where RUNTIME_APPROVAL_SECRET is set, and /mcp has the tools of language
    models, where RUNTIME_MCP_TOKEN is. GET /healthz and /readyz are for orchestrators. Sources are declared beside
    agents, or in RUNTIME_SOURCES.
    """
    streams.go_on()
    begin_log(as_json=as_json)
    settings = find_settings(waits=True, serverless=serverless or None)
    start_logs(settings.log_level, as_json=as_json or logs_are_json(settings.log_format))
    agents, sources = discover_with_sources(paths or [])
    sources += sources_in(settings)
    if not agents and not sources and settings.approval_secret is None and settings.mcp_token is None:
        raise typer.BadParameter("name agents or sources, or set RUNTIME_SOURCES: there is nothing to serve")
    if settings.telemetry:
        export_telemetry()
    if not is_loopback(host) and (secret := non_blank(settings.webhook_secret)) is not None:
        check_exposed(secret, "RUNTIME_WEBHOOK_SECRET")
    app = WebhookApp(agents, sources, settings=settings)
    if not err.is_json:
        for source in sources:
            err.print(f"/webhooks/{source.name} for {source.key}", style="dim", soft_wrap=True)
        print_handlers(handler for agent in agents for handler in agent.handlers)
    if (number := event_loop.run(_serve, app, host, port, settings.drain_seconds, as_json)) is not None:
        raise typer.Exit(128 + number)


async def _serve(app: WebhookApp, host: str, port: int, drain_seconds: float, as_json: bool) -> int | None:
    """Serve until a signal; return the number of a second one, which does not wait for running handlers."""
    listening = bound("runtime serve", host, port)
    shown = f"[{host}]" if ":" in host else host
    stopping, hurried = anyio.Event(), list[int]()
    soon = asyncio.get_running_loop().call_soon_threadsafe

    def stop(number: signal.Signals) -> None:
        soon(stopping.set)
        app.stop()
        err.print(f"{number.name}: no new work is taken, and what runs finishes. Once more to quit at once.")

    async with anyio.create_task_group() as tasks:

        def hurry(number: signal.Signals) -> None:
            hurried.append(number)
            soon(tasks.cancel_scope.cancel)

        with heeded(stop, hurry, drain_seconds=drain_seconds, say=print_last_words):
            async with app.serving_tools(), served(listening, app, graceful_seconds=drain_seconds):
                url = f"http://{shown}:{listening.getsockname()[1]}/"
                if as_json:
                    print_json({"url": url})
                else:
                    typer.echo(f"Serving at {url}")
                async with anyio.create_task_group() as working:
                    working.start_soon(app.run)
                    await stopping.wait()
                    app.stop()
            await app.close()
            tasks.cancel_scope.cancel()
    return hurried[0] if hurried else None
