"""`runtime webhooks`: subscriptions whose handler is a URL."""

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import anyio
import typer
from rich.text import Text

from runtime.agent.target import check_url
from runtime.cli import figures
from runtime.cli.app import App
from runtime.cli.completion import handlers, patterns
from runtime.cli.confirm import confirm
from runtime.cli.find_stream import find_settings
from runtime.cli.options import DryRun, Json, Yes
from runtime.cli.output import err, out, plain, print_found, print_json
from runtime.cli.pause import pause as pause_subscription
from runtime.cli.resume import resume as resume_subscription
from runtime.cli.tables import Rows
from runtime.cli.times import ago, counted, span
from runtime.client.admin import Admin
from runtime.client.stream import connect
from runtime.webhooks.signatures import read_secret

app = App(
    no_args_is_help=True,
    help="Webhooks out: subscriptions whose handler is a URL. `runtime run --webhooks` posts to them.",
)

Name = Annotated[
    str,
    typer.Argument(
        autocompletion=handlers, help="The webhook: agent.handler, or its last part under the agent webhooks."
    ),
]
_STYLES = {"well": "green", "resting": "yellow", "probing": "yellow", "failing": "yellow", "gone": "red"}


@app.command()
def add(
    pattern: Annotated[
        str, typer.Argument(autocompletion=patterns, help="A key, or a pattern such as task.* and task.>.")
    ],
    url: Annotated[str, typer.Argument(help="Where to post: https://…")],
    name: Annotated[
        str | None,
        typer.Option(
            help="agent.handler, or a handler of the agent webhooks; after the URL's host by default."
        ),
    ] = None,
    emits: Annotated[
        str | None, typer.Option(metavar="KEY", help="Write the JSON of the answer under this key.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="How many requests all workers together make at once; by default 10 in each.",
        ),
    ] = None,
    attempts: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Attempts in all; 15 by default, within about half a day."),
    ] = None,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Post messages of one key one after another.")
    ] = False,
    earliest: Annotated[
        bool, typer.Option("--earliest", help="Begin with all there is, not with what comes.")
    ] = False,
    secret_prompt: Annotated[
        bool, typer.Option("--secret", help="Ask for a secret you have, instead of drawing one.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Change the webhook of this name; its secret and its work stay.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add a webhook, and print the secret its requests are signed with: this once."""
    full = _full(name or re.sub(r"[^a-z0-9]+", "_", (urlsplit(check_url(url)).hostname or "").lower()))
    secret = typer.prompt("Secret (whsec_…)", hide_input=True, err=True) if secret_prompt else None
    if secret is not None:
        read_secret(secret)
    added = _with(
        lambda it: it.add_webhook(
            full, url, pattern, emits=emits, ordered=ordered, concurrency=concurrency, attempts=attempts,
            start="earliest" if earliest else "latest", secret=secret, replace=replace,
        )
    )  # fmt: skip
    if as_json:
        print_json(added)
        return
    err.print(f"{added['name']} posts {pattern} to {added['url']}", soft_wrap=True)
    _show_secret(added["secret"])
    [row] = [each for each in _with(lambda it: it.webhooks()) if each["name"] == full]
    if not row["workers"]:
        err.print("No worker posts yet: `runtime run --webhooks`. What is written is kept until one does.")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the webhooks, and how their targets are."""
    found = _with(lambda it: it.webhooks())
    print_found(
        found,
        as_json=as_json,
        table=_table,
        nothing="There is no webhook: runtime webhooks add 'task.*' https://example.com/hooks",
    )


@app.command()
def remove(name: Name, dry_run: DryRun = False, yes: Yes = False, as_json: Json = False) -> None:
    """Remove a webhook, with the deliveries that wait for it. Its dead letters stay."""
    full = _full(name)
    waiting = _with(lambda it: it.remove_webhook(full, dry_run=True))
    deliveries = counted(waiting, "delivery", "deliveries")
    if not dry_run:
        confirm(f"Remove {full} and the {deliveries} that wait for it?", yes=yes)
        _with(lambda it: it.remove_webhook(full))
    if as_json:
        print_json({"subscription": full, "waiting": waiting, "removed": not dry_run})
    else:
        out.print(f"{full} and {deliveries} {'would go' if dry_run else 'removed'}", soft_wrap=True)


@app.command()
def rotate(
    name: Name,
    keep: Annotated[
        float, typer.Option(parser=span, metavar="SPAN", help="How long the old secret signs too: 1h, 1d.")
    ] = "1d",  # type: ignore[assignment]
    as_json: Json = False,
) -> None:
    """Draw a new secret and print it: this once. The old one signs beside it for a while."""
    rotated = _with(lambda it: it.rotate_webhook(_full(name), keep_seconds=keep))
    if as_json:
        print_json(rotated)
        return
    until = datetime.fromisoformat(rotated["old_until"]).astimezone()
    err.print(
        f"{rotated['name']} signs with a new secret, and until {until:%d %b %H:%M} with the old one too",
        soft_wrap=True,
    )
    _show_secret(rotated["secret"])


@app.command()
def pause(name: Name, as_json: Json = False) -> None:
    """Post nothing more; what is written gathers until `runtime webhooks resume`."""
    pause_subscription(_full(name), as_json=as_json)


@app.command()
def resume(name: Name, as_json: Json = False) -> None:
    """Post again: after a pause, or at once though the target rests or was gone."""
    resume_subscription(_full(name), as_json=as_json)


@app.command("test")
def try_(name: Name, as_json: Json = False) -> None:
    """Post one message of the type webhook.test from here, and say what was answered. Nothing is stored."""
    answered = anyio.run(_test, _full(name))
    if as_json:
        print_json(answered)
    else:
        out.print(
            f"{answered['url']} answered {answered['status']} in {answered['seconds']:.2f} s", soft_wrap=True
        )
    if not 200 <= answered["status"] < 300:
        raise typer.Exit(1)


async def _test(name: str) -> dict[str, Any]:
    from runtime.worker.webhook_forwarder import try_out

    return await try_out(find_settings(), name)


def _with(what: Callable[[Admin], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with connect(find_settings()) as stream:
            return await what(stream.operations)

    return anyio.run(run)


def _full(name: str) -> str:
    return name if "." in name else f"webhooks.{name}"


def _show_secret(secret: str) -> None:
    err.print("Its secret, shown this once; the receiver verifies with it:", style="dim")
    out.print(secret, soft_wrap=True)


def _table(found: list[dict[str, Any]]) -> Rows:
    table = Rows(
        "webhook",
        figures=("workers", *figures.WORK, "last success"),
        texts=("state", "patterns", "emits", "url", "last error"),
        shortened=("last error",),
    )
    for each in found:
        error = each["last_error"] if each["state"] not in ("well", "paused") else None
        table.add(
            each["name"],
            figures.workers(each),
            *figures.work(each),
            ago(each["succeeded_at"]) if each["succeeded_at"] else "",
            Text(_state(each), _STYLES.get(each["state"], "yellow")),
            " ".join(each["patterns"]),
            each["emits"] or "",
            each["url"],
            plain(error),
        )
    return table


def _state(each: dict[str, Any]) -> str:
    return (
        f"rests for {each['rests_seconds']:.0f} s"
        if each["rests_seconds"] is not None
        else str(each["state"])
    )
