"""`runtime fork`: write a message anew that shares the first steps of its handler."""

from typing import Annotated, Any

import anyio
import typer

from runtime.cli.completion import handlers
from runtime.cli.find_stream import find_settings
from runtime.cli.json_value import edits_of
from runtime.cli.options import Edits, FromStep, Json
from runtime.cli.output import out, plain, print_json
from runtime.cli.times import counted
from runtime.client.stream import connect


def fork(
    message: Annotated[int, typer.Argument(metavar="MESSAGE", min=1, help="The message's id.")],
    from_step: FromStep = None,
    subscription: Annotated[
        str | None,
        typer.Option(
            "--subscription",
            "-s",
            autocompletion=handlers,
            help="Only for this one: agent.handler.",
            show_default=False,
        ),
    ] = None,
    edit: Edits = None,
    as_json: Json = False,
) -> None:
    """Write a message anew, for handlers that go on from the steps they have kept for it.

    The message, its deliveries and its steps stay as they are. The new one goes to the handlers that have kept STEP,
    with what they had kept before it; without --from they share all that is kept. What follows happens once more, also
    outside: the new message has idempotency keys of its own.
    """
    answer = anyio.run(_fork, message, from_step, subscription, edits_of(edit or []))
    if as_json:
        print_json(answer)
        return
    names = ", ".join(plain(name) for name in answer["subscriptions"])
    out.print(
        f"#{answer['id']} is message {message} once more, for {names}, with {counted(answer['steps'], 'kept step')}"
    )


async def _fork(
    message: int, from_step: str | None, subscription: str | None, edits: dict[str, Any]
) -> dict[str, Any]:
    async with connect(find_settings()) as stream:
        return await stream.operations.fork(
            message, from_step=from_step, subscription=subscription, edits=edits
        )
