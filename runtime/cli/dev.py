"""`runtime dev`: a stack, agents that reload when their files change, and their messages, in a browser too."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import anyio
import typer
from pydantic import SecretStr
from rich.text import Text

from runtime.cli import streams
from runtime.cli.dashboard import PORT, open_browser
from runtime.cli.find_stream import find_settings, gone_stack
from runtime.cli.message_first import AttemptPipe, MessageFirst
from runtime.cli.options import Json
from runtime.cli.output import err, print_note, start_logs
from runtime.cli.progress import progress
from runtime.cli.reload import Reloader
from runtime.client.stream import connect
from runtime.dashboard.server import serving
from runtime.errors import DiscoveryError, SettingsError, StoreError
from runtime.local.stack import LocalStack
from runtime.settings import Settings
from runtime.worker import event_loop

_AGENTS = "agents"
_RETRY_SECONDS = 1.0
_LAST_SECONDS = 5.0


def dev(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="What `runtime run` takes.", show_default=f"{_AGENTS}/"),
    ] = None,
    is_opened: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the dashboard in a browser, where there is one.")
    ] = True,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            metavar="PORT",
            help="Port of the local stack's API.",
            show_default="a free one",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run agents over a stack on this machine, reload them when a file changes, and watch what flows.

    A reload drains: running handlers finish, and what is written meanwhile waits. Where SUPABASE_URL or DATABASE_URL
    is set that stream is used; otherwise the local stack of this project is started, and stopped again at Ctrl-C. The
    dashboard opens in a browser where there is one; its address is printed.
    """
    paths = paths or [_AGENTS]
    if paths == [_AGENTS] and not Path(_AGENTS).is_dir():
        raise DiscoveryError(
            f"There is no folder {_AGENTS}/ here. Name your agents, or make some: runtime init"
        )
    streams.go_on()
    start_logs("warning", as_json=as_json or Settings.load().log_format == "json")
    shown = DevOutput(as_json)
    with _settings(port, shown) as settings:
        shown.say(f"the stream is {settings.describe_stream()}")
        event_loop.run(_dev, settings, paths, is_opened, shown)


@dataclass(frozen=True)
class DevOutput:
    """What `runtime dev` itself prints: lines for a person, or JSON lines."""

    as_json: bool

    def say(self, text: str) -> None:
        """Print a sentence on stderr: as a line of its own, or as the log's lines are."""
        if err.is_json:
            print_note(text, logger="runtime.dev")
        else:
            err.print(Text(f"── {text}", style="bold blue"))


@contextmanager
def _settings(port: int | None, shown: DevOutput) -> Iterator[Settings]:
    """Yield the settings of the configured stream, or of the project's stack, which runs during the block."""
    settings = Settings.load()
    if settings.supabase_url is not None or settings.database_url is not None:
        if gone := gone_stack(settings):
            raise SettingsError(gone)
        yield settings
        return
    stack = LocalStack(api_port=port)
    with progress(as_json=err.is_json) as say:
        has_started = stack.start(say=say)
    try:
        yield find_settings()
    finally:
        if has_started:
            stack.stop()
            shown.say("the local stack is stopped; its data stays")


async def _dev(settings: Settings, paths: list[str], is_opened: bool, shown: DevOutput) -> None:
    lines = MessageFirst(as_json=shown.as_json)
    with closing(AttemptPipe(lines.tell)) as pipe:
        await _run(settings, paths, is_opened, shown, lines, pipe)


async def _run(
    settings: Settings,
    paths: list[str],
    is_opened: bool,
    shown: DevOutput,
    lines: MessageFirst,
    pipe: AttemptPipe,
) -> None:
    # Windows hands no descriptors on: there the agents' process prints by itself.
    is_piped = os.name == "posix"
    reloading = Reloader(
        paths,
        _environment(settings),
        drain_seconds=settings.drain_seconds,
        say=shown.say,
        options=[
            *(["--json"] if shown.as_json else []),
            *(["--attempts-to", str(pipe.number)] if is_piped else []),
        ],
        descriptors=[pipe.number] if is_piped else [],
    )
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey, signals, reloading, shown)
            tasks.start_soon(_tail, settings, shown, lines)
            if is_piped:
                tasks.start_soon(pipe.listen)
            tasks.start_soon(_show, settings, paths, is_opened, shown)
            await reloading.run()
            tasks.cancel_scope.cancel()
    if is_piped:
        pipe.take()
    await _end(settings, shown, lines)


async def _obey(signals: AsyncIterator[signal.Signals], reloading: Reloader, shown: DevOutput) -> None:
    async for _ in signals:
        shown.say("ending: running handlers finish; once more to end at once")
        reloading.stop()


async def _show(settings: Settings, paths: list[str], is_opened: bool, shown: DevOutput) -> None:
    """Serve the dashboard at its usual port, or at a free one if that is taken."""
    async with serving(settings, port=PORT, or_free=True, paths=paths) as url:
        shown.say(f"dashboard: {url}")
        if is_opened:
            await open_browser(url)
        await anyio.sleep_forever()


async def _tail(settings: Settings, shown: DevOutput, lines: MessageFirst) -> None:
    """Print messages as they are written; retry while the stream is away."""
    trouble = ""
    while True:
        try:
            async with connect(settings) as stream, anyio.create_task_group() as tasks:
                tasks.start_soon(lines.find_late, stream.get)
                async for message in stream.listen(">"):
                    trouble = ""
                    lines.show(message)
        except* StoreError as group:
            lines.give_up()
            # The agents' own process logs the details.
            why = str(group.exceptions[0])
            if why != trouble:
                trouble = why
                shown.say("the stream cannot be read at the moment; looking again until it can")
        await anyio.sleep(_RETRY_SECONDS)


async def _end(settings: Settings, shown: DevOutput, lines: MessageFirst) -> None:
    """Print the lines about the last attempts, after their messages if these can be read soon."""
    if lines.is_holding:
        try:
            with anyio.move_on_after(_LAST_SECONDS):
                async with connect(settings) as stream:
                    await lines.find(stream.get)
        except* StoreError:
            shown.say("the stream cannot be read at the moment")
    lines.give_up()


def _environment(settings: Settings) -> dict[str, str]:
    """Return the agents' environment: this process's own, with the stream's variables."""
    found: dict[str, str | SecretStr | None] = {
        "SUPABASE_URL": settings.supabase_url,
        "SUPABASE_SERVICE_ROLE_KEY": settings.supabase_key,
    }
    named = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in found.items()
        if value is not None
    }
    # A developer reads the log, also through a pipe.
    return {"RUNTIME_LOG_FORMAT": "json" if err.is_json else "lines", **os.environ, **named}
