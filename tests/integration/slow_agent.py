"""An agent whose every message takes a moment, for tests that interrupt it."""

import anyio

from runtime import Agent

agent = Agent("slow")


@agent.on("slow.task", concurrency=20)
async def work(value: int) -> None:
    """Take a while."""
    await anyio.sleep(0.05)
