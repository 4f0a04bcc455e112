"""What does a script order while everything breaks?"""

import time

import anyio
import asyncpg

from runtime.client.stream import connect
from runtime.errors import StoreError
from tests.chaos.ledger import Ledger
from tests.chaos.stage import AWAY, Stage

_PAUSE_SECONDS = 0.05
_FEWEST = 2


async def order(stage: Stage, ledger: Ledger, until: float) -> None:
    """Order again and again until the act ends, and twice at least, however late it is."""
    await _make_table(stage)
    async with connect(stage.settings("direct")) as stream:
        ordered = 0
        while ordered < _FEWEST or time.monotonic() < until:
            number = time.monotonic_ns() // 1_000 % 1_000_000_000
            try:
                await stream.send("bookings.order", number, dedup_key=f"booking-{number}")
            except StoreError:
                # It may have been stored all the same: then it is handled, and not asked for.
                await anyio.sleep(0.1)
            else:
                ledger.driven["bookings"].append(number)
                ordered += 1
                await anyio.sleep(_PAUSE_SECONDS)


async def _make_table(stage: Stage) -> None:
    """Make the clerk's table, however often it takes."""
    with anyio.fail_after(120):
        while True:
            try:
                connection = await asyncpg.connect(stage.url, timeout=3)
                try:
                    await connection.execute(
                        "create table if not exists public.bookings (number bigint not null, part text not null)"
                    )
                finally:
                    connection.terminate()
            except AWAY:
                await anyio.sleep(0.2)
            else:
                return
