"""The command `runtime`: one file per command, each loaded when it is called.

Exit codes: 0 done; 1 it could not be done, and stderr says why and what to do; 2 the command line makes no sense;
130 ended by Ctrl-C, 143 by SIGTERM where a command does not drain, or by a second one where it does.
"""

from importlib import import_module
from typing import Annotated, Any, Final

import typer

from runtime.cli import streams
from runtime.cli.app import App, Command, Commands
from runtime.errors import SettingsError
from runtime.extras import needing

# The summaries of the list of commands, here so that printing the list loads no command.
_GROUPS: Final = {
    "Set up": {
        "init": "Put the migrations and a first agent into a Supabase project.",
        "local": "A Supabase-compatible stack on this machine, without Docker.",
        "doctor": "Check the set-up, and send one row all the way round.",
        "demo": "Watch four agents turn notes into a site.",
    },
    "Work with agents": {
        "dev": "Run agents over a stack on this machine, and reload them on change.",
        "run": "Run agents until Ctrl-C or SIGTERM.",
        "serve": "Serve agents over HTTP, and take other programs' webhooks.",
        "drain": "Run what is due, and end.",
        "webhooks": "Have messages posted to a URL: a handler in any language.",
        "graph": "Draw which agent writes what, and which reads it.",
        "asyncapi": "Describe keys, agents and schemas as AsyncAPI 3.",
    },
    "Write and read": {
        "send": "Write one message.",
        "ask": "Send a request, and print what its handler answers.",
        "tail": "Print messages as they are written.",
        "read": "Print messages that are there.",
        "approvals": "Show what agents ask people, and decide it.",
        "mcp": "Offer agents to language models as tools, over MCP.",
    },
    "Look": {
        "dashboard": "Watch the stream in a browser, and mend what is stuck.",
        "status": "Say who runs, what waits and what died.",
        "top": "Watch what runs and what waits.",
        "subscriptions": "Show what listens, how far behind it is, and who serves it.",
        "schedules": "Show the timers, and when they tick next.",
        "waits": "Show what suspended handlers wait for.",
        "trace": "Tell one message's whole story, as a tree.",
    },
    "Mend": {
        "dead": "Show dead letters, deliver them again, or discard them.",
        "cancel": "End what waits or runs for a message.",
        "pause": "Let a subscription's work gather.",
        "resume": "Take deliveries of a paused subscription again.",
        "replay": "Deliver messages of the past to a subscription again.",
        "fork": "Try what follows a step again, beside the first time.",
        "prune": "Remove old messages.",
    },
}
COMMANDS: Final = {name: text for group in _GROUPS.values() for name, text in group.items()}

# The extras of commands whose libraries a worker does not need.
_EXTRAS: Final = {
    "dashboard": ("dashboard",),
    "demo": ("demo",),
    "dev": ("local", "dashboard"),
    "local": ("local",),
    "mcp": ("mcp",),
    "serve": ("serve",),
}


class _LoadedWhenCalled(Commands):
    """The commands by name; a command's module is imported when it is called, or its own help is printed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: Command(name, short_help=text) for name, text in COMMANDS.items()}
        self.sections = {title: list(group) for title, group in _GROUPS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command these arguments begin with, and load it.

        Raises:
            SettingsError: a library that it needs is not installed.
        """
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        try:
            return name, load(name), rest
        except SettingsError:
            # Completion in a shell: an error would be of no use there.
            if ctx.resilient_parsing:
                return name, command, rest
            raise


def load(name: str) -> Any:
    """Return the command in the file of this name: a function, or an app with commands of its own."""
    with needing(f"runtime {name}", *_EXTRAS.get(name, ())):
        module = import_module(f"runtime.cli.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = App()
        app.command(name)(getattr(module, name))
    return typer.main.get_command(app)


app = App(
    cls=_LoadedWhenCalled,
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Agents that wake on a row: a realtime event-driven agent runtime on Supabase.",
    epilog="Commands find the stream by SUPABASE_URL and a key, or DATABASE_URL, else the local stack that runs.",
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"agent-runtime {version('agent-runtime')}")
        raise typer.Exit


@app.callback()
def options(
    is_version_asked: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The options of every command."""


def main() -> None:
    """Run the command line and end the process."""
    streams.guard()
    app(prog_name="runtime")
