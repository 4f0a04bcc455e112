"""The command `runtime`: one file per command, each loaded when it is called.

Exit codes: 0 done; 1 it could not be done, and stderr says why and what to do; 2 the command line makes no sense;
130 ended by Ctrl-C, 143 by a second SIGTERM.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from runtime.cli import demo, local, read, run, send, status, tail
from runtime.cli.faults import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Agents that wake on a row: a realtime event-driven agent runtime on Supabase.",
    epilog="Commands find the stream by SUPABASE_URL and a key, or DATABASE_URL, else the local stack that runs.",
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("send")(send.send)
app.command("tail")(tail.tail)
app.command("read")(read.read)
app.command("status")(status.status)
app.add_typer(local.app, name="local")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"agent-runtime {version('agent-runtime')}")
        raise typer.Exit


@app.callback()
def options(
    is_version_asked: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What holds for every command."""


def main() -> None:
    """Run the command line and end the process."""
    app(prog_name="runtime")
