"""What does a step cost beside a message that is sent? One handler takes both in turn, and tells how long each took."""

import time
from typing import Any

import runtime
from runtime import Agent, Context

agent = Agent("bench")
TRIPS = 300


async def step() -> int:
    """Nothing, in the shape of work."""
    return 1


@agent.on("bench", emits="bench.timed")
async def handle(value: dict[str, Any], context: Context) -> dict[str, list[float]]:
    """A step and a message, again and again."""
    seconds: dict[str, list[float]] = {"step": [], "send": []}
    async with runtime.connect() as stream:
        for number in range(TRIPS):
            began = time.perf_counter()
            await context.step("one", step, key=str(number))
            between = time.perf_counter()
            await stream.send("bench.sent", value)
            seconds["step"].append(between - began)
            seconds["send"].append(time.perf_counter() - between)
    return seconds


@agent.on("bench.sent")
async def take(value: dict[str, Any]) -> None:
    """Somebody gets each message."""
