"""As many handlers of one key as BENCH_HANDLERS says, one by default."""

import os
from typing import Any

from runtime import Agent
from tests.bench.starts import Starts

agent = Agent("bench")
starts = Starts(os.environ["BENCH_STARTS"])


def declare(number: int) -> None:
    """One more handler of the key."""

    async def handle(value: dict[str, Any]) -> None:
        starts.note(value["number"])

    handle.__name__ = handle.__qualname__ = f"handle_{number}"
    agent.on("bench")(handle)


for number in range(int(os.environ.get("BENCH_HANDLERS", "1"))):
    declare(number)
