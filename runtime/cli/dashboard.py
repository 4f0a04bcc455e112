"""`runtime dashboard`: every agent, message and failure in a browser, live."""

import asyncio
import signal
import webbrowser
from typing import Annotated

import anyio
import typer

from runtime.cli import streams
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import err, print_json, print_last_words, start_logs
from runtime.dashboard.server import serving
from runtime.settings import Settings
from runtime.worker import event_loop
from runtime.worker.signals import heeded

PORT = 8321


def dashboard(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...", help="Agents whose schemas a message written by hand is checked by."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; any but 127.0.0.1 asks for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = PORT,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="RUNTIME_DASHBOARD_TOKEN", help="What a browser must bring; drawn where it is needed."
        ),
    ] = None,
    is_opened: Annotated[
        bool, typer.Option("--open/--no-open", help="Open it in a browser, where there is one.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Show the stream in a browser until Ctrl-C: what is written, who handles it, what is stuck; and mend it."""
    streams.go_on()
    settings = find_settings()
    start_logs(
        "warning" if settings.log_level == "info" else settings.log_level,
        as_json=as_json or settings.log_format == "json",
    )
    number = event_loop.run(_serve, settings, paths or [], host, port, token, is_opened, as_json)
    if number is not None:
        raise typer.Exit(128 + number)


async def _serve(
    settings: Settings,
    paths: list[str],
    host: str,
    port: int,
    token: str | None,
    is_opened: bool,
    as_json: bool,
) -> int | None:
    """Serve until a signal; return the number of a second one, which does not wait for browsers."""
    stopping, hurried = anyio.Event(), list[int]()
    soon = asyncio.get_running_loop().call_soon_threadsafe

    def stop(number: signal.Signals) -> None:
        soon(stopping.set)
        if number == signal.SIGINT:
            err.print("The dashboard has ended; the agents go on.", style="dim")

    async with anyio.create_task_group() as tasks:

        def hurry(number: signal.Signals) -> None:
            hurried.append(number)
            soon(tasks.cancel_scope.cancel)

        with heeded(stop, hurry, drain_seconds=0, say=print_last_words):
            async with serving(settings, host=host, port=port, token=token, paths=paths) as url:
                if as_json:
                    print_json({"url": url})
                else:
                    typer.echo(f"Dashboard: {url}")
                if is_opened:
                    tasks.start_soon(open_browser, url)
                await stopping.wait()
            tasks.cancel_scope.cancel()
    return hurried[0] if hurried else None


async def open_browser(url: str) -> None:
    """Open a page if this machine has a graphical browser; a text browser is not started."""
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return
    if not isinstance(found, webbrowser.GenericBrowser) or isinstance(found, webbrowser.BackgroundBrowser):
        await anyio.to_thread.run_sync(found.open, url, abandon_on_cancel=True)
