"""`runtime dashboard`: every agent, message and failure in a browser, live."""

import signal
import webbrowser
from typing import Annotated

import anyio
import typer

from runtime import loops
from runtime.cli.output import err, start_logs
from runtime.cli.place import find_settings
from runtime.settings import Settings

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
) -> None:
    """Show the stream in a browser until Ctrl-C: what is written, who handles it, what is stuck; and mend it."""
    settings = find_settings()
    start_logs("warning" if settings.log_level == "info" else settings.log_level, as_json=False)
    loops.run(_serve, settings, paths or [], host, port, token, is_opened)


async def _serve(
    settings: Settings, paths: list[str], host: str, port: int, token: str | None, is_opened: bool
) -> None:
    from runtime.dashboard.server import serving

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with serving(settings, host=host, port=port, token=token, paths=paths) as url:
            typer.echo(f"Dashboard: {url}")
            if is_opened:
                await open_browser(url)
            async for number in signals:
                if number == signal.SIGINT:
                    err.print("The dashboard has ended; the agents go on.", style="dim")
                return


async def open_browser(url: str) -> None:
    """Open a page where this machine has a browser with a screen; a browser of the terminal stays shut."""
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return
    if not isinstance(found, webbrowser.GenericBrowser) or isinstance(found, webbrowser.BackgroundBrowser):
        await anyio.to_thread.run_sync(found.open, url, abandon_on_cancel=True)
