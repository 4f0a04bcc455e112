"""What does a script order and pay while everything breaks?"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import anyio

from runtime.client.stream import Stream, connect
from runtime.errors import StoreError
from tests.chaos.ledger import Ledger
from tests.chaos.stage import AWAY, Stage

_PAUSE_SECONDS = 0.3
# Longer than a handler waits within its process.
_LONGEST_SECONDS = 6.0
# Only for what hangs: a busy machine takes its time.
_PATIENCE_SECONDS = 240.0


async def order_and_pay(stage: Stage, ledger: Ledger, until: float) -> None:
    """Order again and again until the act ends, over both ways, and pay each order some seconds later."""
    async with anyio.create_task_group() as tasks:
        for store in ("rest", "direct"):
            tasks.start_soon(_order_over, stage, ledger, store, until)


async def _order_over(stage: Stage, ledger: Ledger, store: str, until: float) -> None:
    """Order at least once, however late it is; the first order is paid when its handler is suspended, not before."""
    random = Random()
    orders = ledger.driven["waits"]
    async with connect(stage.settings(store)) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(_trade, stream, orders, _new_number(), partial(_until_suspended, stage))
        await anyio.sleep(_PAUSE_SECONDS)
        while time.monotonic() < until:
            pause = random.random() * _LONGEST_SECONDS
            tasks.start_soon(_trade, stream, orders, _new_number(), partial(_a_while, pause))
            await anyio.sleep(_PAUSE_SECONDS)


def _new_number() -> int:
    return time.monotonic_ns() // 1_000 % 1_000_000_000


async def _trade(
    stream: Stream, orders: list[int], number: int, wait: Callable[[int], Awaitable[None]]
) -> None:
    """Order, wait as long as told for the order's message, and pay."""
    order = await _say(stream, "waits.order", number, f"order-{number}")
    orders.append(number)
    await wait(order)
    # Others go by: only the own one counts.
    await _say(stream, "waits.paid", {"number": -number}, f"other-{number}")
    await _say(stream, "waits.paid", {"number": number, "cents": 1}, f"paid-{number}")


async def _a_while(seconds: float, _order: int) -> None:
    await anyio.sleep(seconds)


async def _until_suspended(stage: Stage, order: int) -> None:
    """Wait until the handler of an order has been suspended, whenever a slow machine comes to it."""
    with anyio.move_on_after(_PATIENCE_SECONDS):
        while True:
            async with stage.connection() as connection:
                # A fault may strike the question; it is asked again.
                with suppress(*AWAY):
                    if await connection.fetchval(
                        "select exists (select from runtime.runs where message_id = $1 and outcome = 'suspended')",
                        order,
                    ):
                        return
            await anyio.sleep(0.25)


async def _say(stream: Stream, key: str, value: Any, dedup_key: str) -> int:
    """Send once, however often it has to be said; returns the message's id."""
    while True:
        try:
            sent = await stream.send(key, value, dedup_key=dedup_key)
        except StoreError:
            await anyio.sleep(0.1)
        else:
            return sent.id
