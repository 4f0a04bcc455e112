"""What does a script ask while everything breaks, and what does it hear?"""

import time
from dataclasses import dataclass
from typing import Any

import anyio

from runtime.client.stream import Stream, connect
from runtime.errors import AskError, StoreError
from tests.chaos.ledger import Ledger
from tests.chaos.stage import Stage

_PAUSE_SECONDS = 0.2
# Only for what hangs: a busy machine takes its time.
_PATIENCE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and what it was answered; None where nothing came."""

    number: int
    heard: Any


async def ask_all_the_time(stage: Stage, ledger: Ledger, until: float) -> None:
    """Ask again and again until the act ends, half of the time over the way that breaks, and wait for all answers."""
    async with anyio.create_task_group() as tasks:
        for store in ("rest", "direct"):
            tasks.start_soon(_ask_over, stage, ledger, store, until)


async def _ask_over(stage: Stage, ledger: Ledger, store: str, until: float) -> None:
    asked = ledger.driven["requests"]
    async with connect(stage.settings(store)) as stream, anyio.create_task_group() as tasks:
        # Each act asks one request at least, however late it is.
        is_over = False
        while not is_over:
            number = time.monotonic_ns() // 1_000 % 1_000_000_000
            tasks.start_soon(_ask, stream, asked, number)
            await anyio.sleep(_PAUSE_SECONDS)
            is_over = time.monotonic() >= until


async def _ask(stream: Stream, asked: list[Asked], number: int) -> None:
    """Ask once, however often it has to be said: under one dedup_key it is one request."""
    heard = None
    with anyio.move_on_after(_PATIENCE_SECONDS):
        while heard is None:
            try:
                heard = await stream.ask("requests.whole", number, dedup_key=f"asked-{number}", timeout=20)
            except (StoreError, AskError):
                await anyio.sleep(0.1)
    asked.append(Asked(number, heard))
