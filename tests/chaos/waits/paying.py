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
# Only for what hangs: a busy machine takes its time.
_PATIENCE_SECONDS = 150.0
# Longer than a handler waits within its process.
_LONGEST_SECONDS = 6.0


async def order_and_pay(stage: Stage, ledger: Ledger, until: float) -> None:
    """Order again and again until the act ends, over both ways, and pay each order some seconds later.

    The first order of each way is paid once its handler is suspended, however slow the machine is.
    """
    async with anyio.create_task_group() as tasks:
        for store in ("rest", "direct"):
            tasks.start_soon(_order_over, stage, ledger, store, until)


async def _order_over(stage: Stage, ledger: Ledger, store: str, until: float) -> None:
    random = Random()
    async with connect(stage.settings(store)) as stream, anyio.create_task_group() as tasks:
        patience = partial(_until_suspended, stage)
        while time.monotonic() < until:
            number = time.monotonic_ns() // 1_000 % 1_000_000_000
            tasks.start_soon(_trade, stream, ledger.driven["waits"], number, patience)
            await anyio.sleep(_PAUSE_SECONDS)
            patience = partial(_some_seconds, random.random() * _LONGEST_SECONDS)


async def _trade(
    stream: Stream, orders: list[int], number: int, patience: Callable[[int], Awaitable[None]]
) -> None:
    await _say(stream, "waits.order", number, f"order-{number}")
    orders.append(number)
    await patience(number)
    # Others go by: only the own one counts.
    await _say(stream, "waits.paid", {"number": -number}, f"other-{number}")
    await _say(stream, "waits.paid", {"number": number, "cents": 1}, f"paid-{number}")


async def _some_seconds(seconds: float, _: int) -> None:
    await anyio.sleep(seconds)


async def _until_suspended(stage: Stage, number: int) -> None:
    query = (
        "select exists (select from runtime.runs r join public.consciousness_stream m on m.id = r.message_id "
        "where r.outcome = 'suspended' and m.key = 'waits.order' and m.value = to_jsonb($1::bigint))"
    )
    is_suspended = False
    with anyio.move_on_after(_PATIENCE_SECONDS):
        while not is_suspended:
            async with stage.connection() as connection:
                with suppress(*AWAY):
                    is_suspended = await connection.fetchval(query, number)
            await anyio.sleep(0.1)


async def _say(stream: Stream, key: str, value: Any, dedup_key: str) -> None:
    """Send once, however often it has to be said."""
    while True:
        try:
            await stream.send(key, value, dedup_key=dedup_key)
        except StoreError:
            await anyio.sleep(0.1)
        else:
            return
