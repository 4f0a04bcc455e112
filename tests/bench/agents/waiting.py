"""A handler that waits for the message with its number."""

import os

from runtime import Agent, Context
from tests.bench.starts import Starts

agent = Agent("bench")
starts = Starts(os.environ["BENCH_STARTS"])


@agent.on("bench.wait", concurrency=1_000)
async def wait(number: int, context: Context) -> None:
    """Wait, and note when the message has come."""
    await context.wait_for("bench", {"number": number})
    starts.note(number)
