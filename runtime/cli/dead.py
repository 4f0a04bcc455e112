"""`runtime dead`: the deliveries that failed for good."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated, Any

import anyio
import typer
from rich.progress import Progress
from rich.text import Text

from runtime.cli.app import App
from runtime.cli.completion import handlers, patterns
from runtime.cli.confirm import confirm
from runtime.cli.find_stream import find_settings
from runtime.cli.json_value import edits_of
from runtime.cli.options import DryRun, Edits, FromStep, Json, Yes
from runtime.cli.output import err, out, plain, print_json, print_line, printable_lines, with_words
from runtime.cli.times import ago, counted, span, took
from runtime.client.admin import Admin
from runtime.client.dead_letters import DeadLetterFilter
from runtime.client.stream import connect
from runtime.encoding.json import legible
from runtime.errors import Refused

app = App(
    no_args_is_help=True,
    help="Dead letters: deliveries that used up their attempts or may not be retried.",
)

Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]…", help="Numbers of dead letters.")]
Subscription = Annotated[
    str | None, typer.Option("--subscription", "-s", autocompletion=handlers, help="Whose: agent.handler.")
]
Key = Annotated[
    str | None, typer.Option("--key", "-k", autocompletion=patterns, help="A key or pattern of the messages.")
]
OlderThan = Annotated[
    float | None, typer.Option(parser=span, metavar="SPAN", help="Died so long ago: 90s, 15m, 12h, 7d.")
]
Error = Annotated[str | None, typer.Option("--error", "-e", help="A part of the error's text.")]
Everything = Annotated[bool, typer.Option("--all", help="All of them, where nothing else says which.")]


@app.command("list")
def list_(
    subscription: Subscription = None,
    key: Key = None,
    older_than: OlderThan = None,
    error: Error = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=10_000, help="How many at most.")
    ] = 50,
    before: Annotated[
        int | None, typer.Option(metavar="ID", help="Only those with a lower number, to page on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List dead letters, the newest first."""
    which = _letters(None, subscription, key, older_than, error)
    found = anyio.run(_with, lambda it: it.dead_letters(which, before=before, limit=limit))
    if as_json:
        for letter in found:
            print_json(letter)
        return
    if not found:
        err.print("There are no such dead letters.", style="dim")
        return
    wide = max(len(str(letter["id"])) for letter in found)
    for letter in found:
        # Two lines each: names and errors are too long to stand side by side.
        out.print(
            Text.assemble(
                (f"{letter['id']:>{wide}}", "cyan"), f"  {ago(letter['died_at']):<10}  ",
                (plain(letter["subscription"]), "bold"), f"  #{letter['message_id']} {plain(letter['key'])}",
                (f"  {counted(letter['attempt_count'], 'attempt')}", "dim"),
            )
        )  # fmt: skip
        why = plain(letter["error"] or letter["reason"]).split("\\x0a")[0]
        print_line(Text(f"{'':{wide}}  {why}", style="red"))
    if len(found) == limit:
        err.print(f"More: --before {found[-1]['id']}", style="dim")


@app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="ID", help="Its number.")], as_json: Json = False
) -> None:
    """Show one dead letter whole: the message, every attempt, the traceback."""
    found = anyio.run(_with, lambda it: it.dead_letters(DeadLetterFilter(ids=[number]), details=True))
    if not found:
        raise Refused(f"There is no dead letter {number}. `runtime dead list` lists them.")
    (letter,) = found
    if as_json:
        print_json({**letter, "message": with_words(letter["message"])})
        return
    message = letter["message"]
    out.print(
        Text.assemble(
            (f"dead letter {letter['id']}", "bold"),
            f"  {plain(letter['subscription'])}  {plain(letter['reason'])}  {ago(letter['died_at'])}",
        )
    )
    written = f", {_ago(message['created_at'])}" if message.get("created_at") else ""
    out.print(
        Text.assemble(
            (f"#{letter['message_id']} ", "cyan"), (plain(letter["key"]), "bold"), _by(message), written
        )
    )
    out.print(Text(legible(message["value"])))
    for attempt in letter["attempts"]:
        out.print(Text(f"\n{_attempt(attempt)}", "dim"))
        is_in_traceback = attempt is letter["attempts"][-1] and letter["traceback"]
        if attempt["error"] and not is_in_traceback:
            out.print(Text(_lines(attempt["error"]), style="red"))
    if letter["error"] and all(letter["error"] != attempt["error"] for attempt in letter["attempts"]):
        # No attempt alone ended so: workers died too often, or steps were undone.
        out.print(Text(f"\n{_lines(letter['error'])}", style="red"))
    if letter["traceback"]:
        out.print(Text(_lines(letter["traceback"])))


def _attempt(attempt: dict[str, Any]) -> str:
    """Return one attempt in words; a worker by the part of its id that its name ends with."""
    seconds = f" after {took(attempt['seconds'])}" if attempt["seconds"] is not None else ""
    worker = f", worker {plain(attempt['worker'])[:6]}" if attempt["worker"] else ""
    return f"attempt {attempt['attempt']}: {plain(attempt['outcome'])}{seconds}, {_ago(attempt['ended_at'])}{worker}"


def _ago(moment: str) -> str:
    """Return how long ago a time in a letter's copy was, which another program may have written."""
    try:
        return ago(moment)
    except ValueError:
        return plain(moment)


@app.command()
def redrive(
    ids: Ids = None,
    subscription: Subscription = None,
    key: Key = None,
    older_than: OlderThan = None,
    error: Error = None,
    everything: Everything = False,
    from_step: FromStep = None,
    edit: Edits = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Deliver dead letters again, with fresh attempts; what steps have kept stays.

    With --from or --edit only letters are meant that have kept these steps. Of several steps with one name, each is
    named as runtime trace shows it: "mail [ada] (2)".
    """
    which = _letters(ids, subscription, key, older_than, error)
    edits = edits_of(edit or [])
    preview = partial(Admin.preview, from_step=from_step, edits=edits)
    change = partial(Admin.redrive, from_step=from_step, edits=edits)
    _change("Redrive", "redriven", preview, change, which, everything, dry_run, yes, as_json)


@app.command()
def discard(
    ids: Ids = None,
    subscription: Subscription = None,
    key: Key = None,
    older_than: OlderThan = None,
    error: Error = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove dead letters for good; a key that one of them held up goes on."""
    which = _letters(ids, subscription, key, older_than, error)
    _change("Discard", "discarded", Admin.preview, Admin.discard, which, everything, dry_run, yes, as_json)


def _letters(
    ids: list[int] | None,
    subscription: str | None,
    key: str | None,
    older_than: float | None,
    error: str | None,
) -> DeadLetterFilter:
    return DeadLetterFilter(
        ids=ids or None, subscription=subscription, pattern=key, older_than_seconds=older_than, error=error
    )


def _change(
    verb: str,
    done: str,
    preview: Callable[[Admin, DeadLetterFilter], Awaitable[dict[str, int]]],
    change: Callable[[Admin, DeadLetterFilter], AsyncIterator[int]],
    which: DeadLetterFilter,
    everything: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Show which letters are meant, ask, and change them with a progress bar."""
    if which == DeadLetterFilter() and not everything:
        raise typer.BadParameter("say which dead letters: numbers, a condition, or --all")
    meant = anyio.run(_with, lambda it: preview(it, which))
    total = sum(meant.values())
    if not as_json:
        for name, count in sorted(meant.items()):
            out.print(f"{count:>8,}  {name}")
    if dry_run or not total:
        if as_json:
            print_json({"matching": meant, done: 0})
        elif not total:
            err.print("There are no such dead letters.", style="dim")
        return
    confirm(f"{verb} {counted(total, 'dead letter')}?", yes=yes)
    count = anyio.run(_count, change, which, total)
    if as_json:
        print_json({"matching": meant, done: count})
    else:
        out.print(f"{count:,} {done}")


async def _count(
    change: Callable[[Admin, DeadLetterFilter], AsyncIterator[int]], which: DeadLetterFilter, total: int
) -> int:
    async with connect(find_settings()) as stream:
        with Progress(console=err, transient=True) as progress:
            bar = progress.add_task("", total=total)
            count = 0
            async for batch in change(stream.operations, which):
                count += batch
                progress.update(bar, completed=count)
                # Letters that came after the preview were not shown: they are left alone.
                if count >= total:
                    break
            return count


async def _with(call: Callable[[Admin], Any]) -> Any:
    async with connect(find_settings()) as stream:
        return await call(stream.operations)


def _by(message: dict[str, Any]) -> str:
    return f" by {plain(message['agent'])}" if message.get("agent") else ""


def _lines(text: str) -> str:
    """Return a text as lines without control characters, each marked as a part of the text."""
    return printable_lines(text.rstrip(), "  ")
