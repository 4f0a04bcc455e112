"""What does a script order while everything breaks, and which orders does it fork?"""

import time

import anyio

from runtime.client.stream import Stream, connect
from runtime.errors import StoreError
from tests.chaos.ledger import Ledger
from tests.chaos.stage import Stage

_PAUSE_SECONDS = 0.15
_FORKED_OF = 5
_FORK_SECONDS = 60.0


async def order_and_fork(stage: Stage, ledger: Ledger, until: float) -> None:
    """Order again and again until the act ends, and fork some of what was ordered before."""
    number = time.monotonic_ns() // 1_000_000 % 1_000_000_000
    sent: list[int] = []
    async with connect(stage.settings("direct")) as stream:
        while time.monotonic() < until:
            number += 1
            try:
                order = await stream.send("sagas.order", number, dedup_key=f"saga-{number}")
            except StoreError:
                # It may have been stored all the same: then it is handled, and not asked for.
                await anyio.sleep(0.1)
                continue
            ledger.driven["sagas"].append(number)
            sent.append(order.id)
            if len(sent) > _FORKED_OF and number % _FORKED_OF == 0:
                await _fork(stream, sent.pop(0))
            await anyio.sleep(_PAUSE_SECONDS)
        # One at least: it may take a while until the first one has come to its second step.
        with anyio.move_on_after(_FORK_SECONDS):
            while sent and not await _fork(stream, sent[0]):
                await anyio.sleep(0.1)


async def _fork(stream: Stream, order: int) -> bool:
    """Fork an order from its second step; returns whether that was answered.

    A fork whose answer is lost is judged as well.
    """
    try:
        await stream.operations.fork(order, from_step="hotel")
    except StoreError:
        return False
    return True
