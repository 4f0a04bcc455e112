"""`runtime local`: a Supabase-compatible stack on this machine, without Docker.

Exit codes: 0 done, or there was nothing to do; 1 it could not be done, or `status` found something stopped;
2 the command line makes no sense.
"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.cli.app import App
from runtime.cli.confirm import confirm
from runtime.cli.help import choices
from runtime.cli.options import Json
from runtime.cli.output import print_found, print_json
from runtime.cli.progress import progress
from runtime.cli.tables import Rows
from runtime.connection.local_stack import known_stacks
from runtime.local.stack import LocalStack
from runtime.local.status import StackStatus

app = App(
    no_args_is_help=True,
    help="A Supabase-compatible stack on this machine, without Docker: PostgreSQL, REST and Realtime.",
)

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="RUNTIME_LOCAL_DIR",
        help="Where the stack keeps its data, instead of the folder of this project's stack.",
        file_okay=False,
        show_default="a folder per project",
    ),
]


class StatusFormat(StrEnum):
    """How `status` prints."""

    PRETTY = "pretty"
    ENV = "env"
    JSON = "json"


class Algorithm(StrEnum):
    """How tokens are signed."""

    ES256 = "ES256"
    RS256 = "RS256"


@app.command()
def start(
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Port of the API; 0 for any free one.",
            show_default="54321 or a free one",
        ),
    ] = None,
    db_port: Annotated[
        int | None,
        typer.Option(
            "--db-port",
            min=0,
            max=65535,
            help="Port of PostgreSQL; 0 for any free one.",
            show_default="54322 or a free one",
        ),
    ] = None,
    data_dir: DataDir = None,
    database_url: Annotated[
        str | None,
        typer.Option("--database-url", help="Use this running PostgreSQL, as a superuser, and start none."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            help="Let web pages of this origin use the API; those of this machine may. Repeat it for several.",
            show_default="those of last time",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start the stack, and bring its database up to the migrations; does nothing when it runs already."""
    stack = LocalStack(
        data_dir,
        api_port=port,
        db_port=db_port,
        database_url=database_url,
        allowed_origins=allow_origin or None,
    )
    with progress(as_json=as_json) as say:
        has_started = stack.start(say=say)
    status = stack.status()
    if as_json:
        _print_json(status, started=has_started)
        return
    typer.echo("Started the local stack." if has_started else "The local stack runs already.", err=True)
    _print_pretty(status)


@app.command()
def stop(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Stop the stack; its data stays."""
    with progress(as_json=as_json) as say:
        say("Stopping the stack")
        has_stopped = LocalStack(data_dir).stop()
    if as_json:
        print_json({"stopped": has_stopped})
        return
    typer.echo("Stopped the local stack." if has_stopped else "The local stack does not run.", err=True)


@app.command()
def status(
    output: Annotated[
        StatusFormat,
        typer.Option(
            "--output",
            "-o",
            metavar=choices(StatusFormat),
            help="How to print; env fits `eval` and .env files.",
        ),
    ] = StatusFormat.PRETTY,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say what runs and print its URLs and keys, under the names of `supabase status`."""
    found = LocalStack(data_dir).status()
    if not found.is_running and not as_json:
        typer.echo(f"Stopped: {', '.join(found.stopped)}. Start with: runtime local start", err=True)
    printers: dict[StatusFormat, Callable[[StackStatus], None]] = {
        StatusFormat.PRETTY: _print_pretty,
        StatusFormat.ENV: _print_env,
        StatusFormat.JSON: _print_json,
    }
    is_half_running = found.is_gateway_running or (found.is_database_ours and found.is_database_running)
    if as_json:
        _print_json(found)
    elif found.is_running or is_half_running:
        printers[output](found)
    if not found.is_running:
        raise typer.Exit(1)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the stacks of all your projects, and say which run; `--json` tells where their data lie, too."""
    found = [
        {
            "project": None if each.project is None else str(each.project),
            "running": each.is_running,
            "API_URL": each.api_url,
            "data": str(each.data),
        }
        for each in known_stacks()
    ]
    print_found(found, as_json=as_json, table=_table, nothing="No stack was started yet: runtime local start")


def _table(found: list[dict[str, Any]]) -> Rows:
    table = Rows("project", figures=("state", "API URL"))
    for each in found:
        is_gone = each["project"] is not None and not Path(each["project"]).exists()
        state = "runs" if each["running"] else "folder is gone" if is_gone else "stopped"
        table.add(each["project"] or "-", state, each["API_URL"])
    return table


@app.command()
def reset(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Delete the database with all its data and make it anew from the migrations."""
    stack = LocalStack(data_dir)
    with progress(as_json=as_json) as say:
        say("Making the database anew")
        stack.reset()
    found = stack.status()
    if as_json:
        _print_json(found, reset=True)
        return
    typer.echo("Reset the local stack" + (", which runs." if found.is_running else "."), err=True)


@app.command()
def remove(
    data_dir: DataDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the stack and delete it with all its data, keys and logs, for good."""
    stack = LocalStack(data_dir)
    if stack.exists:
        confirm(f"Delete the stack in {stack.folder} with all its data, for good?", yes=yes)
        with progress(as_json=as_json) as say:
            say("Removing the stack")
            has_removed = stack.remove()
    else:
        has_removed = False
    if as_json:
        print_json({"removed": has_removed})
        return
    typer.echo("Removed the local stack." if has_removed else "There is no local stack here.", err=True)


@app.command()
def rotate(
    algorithm: Annotated[
        Algorithm, typer.Option("--algorithm", metavar=choices(Algorithm), help="Of the new key.")
    ] = Algorithm.ES256,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Sign tokens with a new key; those of the key before stay valid until the next rotation."""
    kid = LocalStack(data_dir).rotate(algorithm.value)
    if as_json:
        print_json({"kid": kid})
        return
    typer.echo(f"Tokens are signed with {kid} from now on.", err=True)


def _print_json(status: StackStatus, **more: bool) -> None:
    parts = {"database": status.is_database_running, "gateway": status.is_gateway_running}
    # Of a stack that does not run at all there is nothing to reach.
    print_json({**more, "running": parts, **(status.values if any(parts.values()) else {})})


def _print_env(status: StackStatus) -> None:
    for name, value in status.values.items():
        typer.echo(f'{name}="{value}"')


def _print_pretty(status: StackStatus) -> None:
    values = status.values
    lines = {
        "API URL": values["API_URL"],
        "REST URL": values["REST_URL"],
        "Database URL": values["DB_URL"],
        "Publishable key": values["PUBLISHABLE_KEY"],
        "Secret key": values["SECRET_KEY"],
        "JWKS URL": values["JWKS_URL"],
        "Data folder": str(status.folder),
        **({} if status.project is None else {"Project": str(status.project)}),
    }
    for label, value in lines.items():
        typer.echo(f"{label:>16}: {value}")
