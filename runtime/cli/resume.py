"""`runtime resume`: end a pause."""

from typing import Annotated

import anyio
import typer

from runtime.cli.completion import handlers
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import out, print_json
from runtime.client.stream import connect


def resume(
    subscription: Annotated[str, typer.Argument(autocompletion=handlers, help="Its name: agent.handler.")],
    as_json: Json = False,
) -> None:
    """Take deliveries of a paused subscription again."""
    anyio.run(_resume, subscription)
    if as_json:
        print_json({"subscription": subscription, "paused": False})
    else:
        out.print(f"{subscription} goes on", soft_wrap=True)


async def _resume(subscription: str) -> None:
    async with connect(find_settings()) as stream:
        await stream.operations.resume(subscription)
