"""`runtime pause`: let a subscription's deliveries gather."""

from typing import Annotated

import anyio
import typer

from runtime.cli.completion import handlers
from runtime.cli.find_stream import find_settings
from runtime.cli.options import Json
from runtime.cli.output import out, print_json
from runtime.client.stream import connect


def pause(
    subscription: Annotated[str, typer.Argument(autocompletion=handlers, help="Its name: agent.handler.")],
    as_json: Json = False,
) -> None:
    """Take no more deliveries of a subscription; what is written for it gathers until `runtime resume`."""
    anyio.run(_pause, subscription)
    if as_json:
        print_json({"subscription": subscription, "paused": True})
    else:
        out.print(f"{subscription} is paused; what runs now finishes", soft_wrap=True)


async def _pause(subscription: str) -> None:
    async with connect(find_settings()) as stream:
        await stream.operations.pause(subscription)
