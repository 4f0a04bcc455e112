"""What does a script order and pay while everything breaks?"""

import time
from random import Random
from typing import Any

import anyio

from runtime.client.stream import Stream, connect
from runtime.errors import StoreError
from tests.chaos.ledger import Ledger
from tests.chaos.stage import Stage

_PAUSE_SECONDS = 0.3
# Longer than a handler waits within its process.
_LONGEST_SECONDS = 6.0


async def order_and_pay(stage: Stage, ledger: Ledger, until: float) -> None:
    """Order again and again until the act ends, over both ways, and pay each order some seconds later."""
    async with anyio.create_task_group() as tasks:
        for store in ("rest", "direct"):
            tasks.start_soon(_order_over, stage, ledger, store, until)


async def _order_over(stage: Stage, ledger: Ledger, store: str, until: float) -> None:
    random = Random()
    async with connect(stage.settings(store)) as stream, anyio.create_task_group() as tasks:
        while time.monotonic() < until:
            number = time.monotonic_ns() // 1_000 % 1_000_000_000
            tasks.start_soon(
                _trade, stream, ledger.driven["waits"], number, random.random() * _LONGEST_SECONDS
            )
            await anyio.sleep(_PAUSE_SECONDS)


async def _trade(stream: Stream, orders: list[int], number: int, seconds: float) -> None:
    await _say(stream, "waits.order", number, f"order-{number}")
    orders.append(number)
    await anyio.sleep(seconds)
    # Others go by: only the own one counts.
    await _say(stream, "waits.paid", {"number": -number}, f"other-{number}")
    await _say(stream, "waits.paid", {"number": number, "cents": 1}, f"paid-{number}")


async def _say(stream: Stream, key: str, value: Any, dedup_key: str) -> None:
    """Send once, however often it has to be said."""
    while True:
        try:
            await stream.send(key, value, dedup_key=dedup_key)
        except StoreError:
            await anyio.sleep(0.1)
        else:
            return
