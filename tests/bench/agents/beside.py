"""A handler of the measured key, beside one whose deliveries are suspended."""

import os
import time
from typing import Any

from runtime import Agent, Context
from tests.bench.starts import Starts

agent = Agent("bench")
# A shorter sleep goes by within the process.
_SHORTEST_SECONDS = 3.0
starts = Starts(os.environ["BENCH_STARTS"])


@agent.on("bench")
async def handle(value: dict[str, Any]) -> None:
    """What is measured."""
    starts.note(value["number"])


@agent.on("bench.sleep", concurrency=1_000)
async def sleep(until: float, context: Context) -> None:
    """Sleep until a moment, in seconds since the epoch: all are due at once."""
    await context.sleep(max(_SHORTEST_SECONDS, until - time.time()))


@agent.on("bench.wait", concurrency=10_000)
async def wait(number: int, context: Context) -> None:
    """Wait for a message that nobody writes."""
    await context.wait_for("bench.never", {"number": number})
