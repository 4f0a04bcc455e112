"""A handler of three steps."""

import os
from typing import Any

from runtime import Agent, Context
from tests.bench.contestants import STEPS
from tests.bench.starts import Starts

agent = Agent("bench")
starts = Starts(os.environ["BENCH_STARTS"])


async def step() -> int:
    """Nothing, in the shape of work."""
    return 1


@agent.on("bench")
async def handle(value: dict[str, Any], context: Context) -> None:
    """One step after another."""
    starts.note(value["number"])
    for name in STEPS:
        await context.step(name, step)
