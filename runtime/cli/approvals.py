"""`runtime approvals`: what agents ask people, and people's decisions."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import anyio
import typer
from rich.text import Text

from runtime.cli.app import App
from runtime.cli.find_stream import find_settings
from runtime.cli.json_value import value_of
from runtime.cli.options import Json
from runtime.cli.output import err, out, plain, print_json, print_line
from runtime.cli.times import ago, until
from runtime.client.admin import Admin
from runtime.client.stream import connect
from runtime.encoding.json import legible

app = App(no_args_is_help=True, help="Approvals: what handlers wait for people to decide.")

Request = Annotated[int, typer.Argument(metavar="REQUEST", min=1, help="The number that the list shows.")]
Why = Annotated[str | None, typer.Option("--why", "-w", help="The reason, which is kept.")]
By = Annotated[
    str | None, typer.Option("--by", help="Who decides; by default the name in the key or the database role.")
]


@app.command("list")
def list_(
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=10_000, help="How many at most.")
    ] = 50,
    as_json: Json = False,
) -> None:
    """List what nobody has decided yet, the oldest first."""
    found = anyio.run(_with, lambda it: it.approvals(limit))
    if as_json:
        for each in found:
            print_json(each)
        return
    if not found:
        err.print("Nothing waits for a decision.", style="dim")
        return
    wide = max(len(str(each["request"])) for each in found)
    for each in found:
        deadline = "" if each["until"] is None else f", open for {until(each['until']).removeprefix('in ')}"
        out.print(
            Text.assemble(
                (f"{each['request']:>{wide}}", "cyan"), "  ", (plain(each["title"]), "bold"),
                (f"  {plain(each['subscription'])}, {ago(each['since'])}{deadline}", "dim"),
            )
        )  # fmt: skip
        if each["details"] is not None:
            print_line(Text(f"{'':{wide}}  {legible(each['details'])}"))
        if refusal := refusal_of(each):
            print_line(Text(f"{'':{wide}}  asked again: {plain(refusal)}", style="yellow"))
        if each["schema"] is not None:
            print_line(Text(f"{'':{wide}}  --answer as {legible(each['schema'])}", style="dim"))


def refusal_of(asked: Mapping[str, Any]) -> str | None:
    """Return why people are asked again, from a request for approval; None where they are asked for the first time."""
    refused = asked.get("refused")
    return str(refused.get("why") or "") or None if isinstance(refused, dict) else None


@app.command()
def approve(
    request: Request,
    answer: Annotated[
        str | None,
        typer.Option("--answer", "-a", help="The value that the handler asks for: JSON, or a text."),
    ] = None,
    why: Why = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Say yes. The first decision counts."""
    _decide(request, True, value_of(answer, as_text=False), why, by, as_json)


@app.command()
def reject(request: Request, why: Why = None, by: By = None, as_json: Json = False) -> None:
    """Say no. The first decision counts."""
    _decide(request, False, None, why, by, as_json)


def _decide(
    request: int, approved: bool, answer: Any, why: str | None, by: str | None, as_json: bool
) -> None:
    told = anyio.run(_with, lambda it: it.decide(request, approved, answer=answer, by=by, why=why))
    if as_json:
        print_json(told)
    if told["decided"]:
        if not as_json:
            out.print("approved" if approved else "rejected", style="green")
        return
    if not as_json:
        if told["expired"]:
            err.print("The time for this decision is over.", style="red")
        else:
            earlier = told["decision"]
            word = "approved" if earlier["approved"] else "rejected"
            why = f": {plain(earlier['why'])}" if earlier["why"] else ""
            err.print(
                Text(f"{plain(earlier['by'])} has {word} it already, {ago(earlier['at'])}{why}."), style="red"
            )
    raise typer.Exit(1)


async def _with(call: Callable[[Admin], Awaitable[Any]]) -> Any:
    async with connect(find_settings()) as stream:
        return await call(stream.operations)
