"""Who has unruly handlers do their worst? One who sends a message now and then, until it is known to be stored."""

import random
import time

import anyio

from runtime.client.stream import connect
from runtime.errors import StoreError
from tests.chaos.ledger import Ledger
from tests.chaos.stage import Stage

_PAUSE_SECONDS = 1.0


async def send_now_and_then(stage: Stage, ledger: Ledger, until: float) -> None:
    """Send until the act ends; note what was stored."""
    async with connect(stage.settings("direct")) as stream:
        while time.monotonic() < until:
            number = random.randrange(10**9)
            while True:
                try:
                    sent = await stream.send("unruly.message", number, dedup_key=f"unruly {number}")
                    break
                except StoreError:
                    await anyio.sleep(0.1)
            ledger.driven["unruly"].append((number, sent.id))
            await anyio.sleep(random.uniform(0, _PAUSE_SECONDS))
