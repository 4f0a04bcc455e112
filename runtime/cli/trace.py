"""`runtime trace`: one message's causes, attempts and effects, as a tree."""

from typing import Annotated, Any

import anyio
import typer
from rich.text import Text
from rich.tree import Tree

from runtime.agent.step_names import UNDO, label_of
from runtime.cli.figures import wait_text
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import err, out, plain, print_json
from runtime.cli.times import ago, counted, took, until
from runtime.client.stream import connect
from runtime.encoding.json import legible
from runtime.errors import Refused

_STYLES = {
    "done": "green",
    "dead": "bold red",
    "failed": "red",
    "retrying": "yellow",
    "running": "cyan",
    "suspended": "yellow",
    "undoing": "yellow",
}
_VALUE_CHARACTERS = 60


def trace(
    message: Annotated[int, typer.Argument(metavar="ID", min=1, help="The message's id.")],
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=2_000, help="How many messages at most.")
    ] = 200,
    as_json: Json = False,
) -> None:
    """Print the tree of messages that one belongs to, each with every handler's attempts."""
    found = anyio.run(_trace, message, limit)
    if not found["messages"]:
        raise Refused(f"There is no message {message}: it was never written, or it is pruned.")
    if as_json:
        print_json(found)
        return
    for tree in trees(found["messages"], message):
        out.print(tree, soft_wrap=not out.is_terminal)
    if found["more"]:
        err.print(f"The tree has more than {limit} messages: --limit shows more.", style="dim")


async def _trace(message: int, limit: int) -> dict[str, Any]:
    async with connect(find_settings()) as stream:
        return await stream.views.trace(message, limit=limit)


def trees(messages: list[dict[str, Any]], asked: int) -> list[Tree]:
    """Return the messages as trees, causes above: one tree, or several if a message between was pruned."""
    roots: list[Tree] = []
    by_id: dict[int, Tree] = {}
    for each in messages:
        parent = by_id.get(each["parent_id"])
        label = _line(each, is_asked=each["id"] == asked)
        node = Tree(label, guide_style="dim") if parent is None else parent.add(label)
        if parent is None:
            roots.append(node)
        by_id[each["id"]] = node
        for handled in each["handled"]:
            below = node.add(_handled(handled))
            for step in handled["steps"] or ():
                below.add(_step(step))
            for wait in handled["waits"] or ():
                below.add(_wait(wait))
    return roots


def _line(message: dict[str, Any], *, is_asked: bool) -> Text:
    value = legible(message["value"])
    shown = value if len(value) <= _VALUE_CHARACTERS else f"{value[: _VALUE_CHARACTERS - 1]}…"
    return Text.assemble(
        (f"#{message['id']}", "bold cyan reverse" if is_asked else "cyan"),
        " ",
        (message["key"], "bold"),
        " ",
        (plain(message["agent"]) or "-", "magenta"),
        (f"  {ago(message['created_at'])}  ", "dim"),
        plain(shown),
    )


def _wait(wait: dict[str, Any]) -> Text:
    """Return what a suspended handler waits for."""
    latest = "" if wait["until"] is None else f", goes on {until(wait['until'])} at the latest"
    return Text.assemble(
        ("waits for ", "yellow"),
        plain(wait_text(wait)),
        (f"  {ago(wait['since'])}{latest}", "dim"),
    )


def _step(step: dict[str, Any]) -> Text:
    """Return a step whose result is kept; of the one that says what its delivery has died of, the error alone."""
    value = legible(step["value"]["error"] if step["name"] == UNDO else step["value"])
    return Text.assemble(
        ("step ", "dim"),
        plain(label_of(step)),
        (f"  {ago(step['created_at'])}  ", "dim"),
        plain(value if len(value) <= _VALUE_CHARACTERS else f"{value[: _VALUE_CHARACTERS - 1]}…"),
    )


def _handled(handled: dict[str, Any]) -> Text:
    """Return the outcome of a message at one subscription."""
    state, seconds, attempts = handled["state"], handled["seconds"], handled["attempts"]
    line = Text.assemble((f"{state} ", _STYLES.get(state, "yellow")), plain(handled["subscription"]))
    if seconds is not None:
        line.append(f"  {took(seconds)}", style="dim")
    if attempts > 1:
        line.append(f"  {counted(attempts, 'attempt')}", style="yellow")
    if handled["error"] and state != "done":
        line.append(f"  {plain(handled['error'].splitlines()[0])}", style="red")
    if handled["status"] is not None:
        line.append(f"  {plain(handled['status']['text'])}", style="italic")
    if handled["letter"] is not None:
        line.append(f"  dead letter {handled['letter']}", style="dim")
    return line
