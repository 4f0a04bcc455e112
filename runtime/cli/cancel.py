"""`runtime cancel`: end the deliveries of one message."""

from enum import StrEnum
from typing import Annotated, Any, Final

import anyio
import typer

from runtime.cli.completion import handlers
from runtime.cli.find_stream import find_settings
from runtime.cli.help import choices
from runtime.cli.options import Json
from runtime.cli.output import out, print_json
from runtime.client.stream import connect
from runtime.errors import Refused


class CancelOutcome(StrEnum):
    """How a cancelled delivery ends."""

    DEAD = "dead"
    DONE = "done"


_ENDED: Final = {CancelOutcome.DEAD: "is a dead letter now", CancelOutcome.DONE: "counts as done now"}
_TOLD: Final = {CancelOutcome.DEAD: "a dead letter", CancelOutcome.DONE: "done"}


def cancel(
    message: Annotated[int, typer.Argument(metavar="MESSAGE", min=1, help="The message's id.")],
    handler: Annotated[
        str | None,
        typer.Option(
            "--handler",
            autocompletion=handlers,
            help="Only for this one: agent.handler.",
            show_default=False,
        ),
    ] = None,
    outcome: Annotated[
        CancelOutcome, typer.Option("--as", metavar=choices(CancelOutcome), help="How it ends.")
    ] = CancelOutcome.DEAD,
    as_json: Json = False,
) -> None:
    """End what waits or runs for a message, as a dead letter, which can be redriven, or as done.

    What waits ends at once. What runs is cancelled by its worker; a plain function cannot be stopped, so it runs to
    its end, and its result is dropped. A dead letter has its finished steps undone first, where they have undos.
    """
    answer = anyio.run(_cancel, message, handler, outcome.value)
    found: list[dict[str, str]] = answer["deliveries"]
    if as_json:
        print_json(answer)
    for each in () if as_json else found:
        name, state = each["subscription"], each["state"]
        if state == "ended":
            out.print(f"{name}: {_ENDED[outcome]}")
        elif state == "undoing":
            out.print(f"{name}: its finished steps are undone, then it is a dead letter")
        elif state == "told":
            out.print(f"{name}: its worker is told; {_TOLD[outcome]} as soon as the handler has stopped")
        else:
            out.print(f"{name}: it is dead already and holds up its key: redrive or discard it")
    if not any(each["state"] in ("ended", "undoing", "told") for each in found):
        raise Refused(_nothing(message, handler, answer))


def _nothing(message: int, handler: str | None, answer: dict[str, Any]) -> str:
    if not answer["known"]:
        return f"There is no message {message}: it was never written, or it is pruned."
    if answer["deliveries"]:
        return f"Nothing waits or runs for message {message} any more."
    whom = handler or "anybody"
    return f"Nothing waits or runs for message {message} of {whom}: it is done, or dead. runtime trace {message} tells."


async def _cancel(message: int, handler: str | None, outcome: str) -> dict[str, Any]:
    async with connect(find_settings()) as stream:
        return await stream.operations.cancel(message, handler, outcome=CancelOutcome(outcome).value)
