"""Who writes what comes in batches? Groups of a few messages, each sent until it is known to be stored."""

import random
import time

import anyio

from runtime.client.stream import connect
from runtime.errors import StoreError
from runtime.message import Draft
from tests.chaos.ledger import Ledger
from tests.chaos.stage import Stage

_LARGEST = 30
_PAUSE_SECONDS = 0.5


async def send_in_groups(stage: Stage, ledger: Ledger, until: float) -> None:
    """Send until the act ends, half of the groups over the way that breaks; note what was stored."""
    async with anyio.create_task_group() as tasks:
        for store in ("rest", "direct"):
            tasks.start_soon(_send_over, stage, ledger, store, until)


async def _send_over(stage: Stage, ledger: Ledger, store: str, until: float) -> None:
    async with connect(stage.settings(store)) as stream:
        while time.monotonic() < until:
            numbers = random.sample(range(10**9), random.randint(1, _LARGEST))
            drafts = [Draft("batches.entry", number, dedup_key=f"entry {number}") for number in numbers]
            while True:
                try:
                    sent = await stream.send_all(drafts)
                    break
                except StoreError:
                    await anyio.sleep(0.1)
            ledger.driven["batches"] += [(n, each.id) for n, each in zip(numbers, sent, strict=True)]
            await anyio.sleep(random.uniform(0, _PAUSE_SECONDS))
