"""Three agents in a row: each returns what the next one gets; each notes its start, so that the last's stays."""

import os
from typing import Any

from runtime import Agent
from tests.bench.starts import Starts

first, second, third = Agent("first"), Agent("second"), Agent("third")
starts = Starts(os.environ["BENCH_STARTS"])


@first.on("bench", emits="bench.second")
async def begin(value: dict[str, Any]) -> dict[str, Any]:
    """The first link."""
    starts.note(value["number"])
    return value


@second.on("bench.second", emits="bench.third")
async def go_on(value: dict[str, Any]) -> dict[str, Any]:
    """The second link."""
    starts.note(value["number"])
    return value


@third.on("bench.third")
async def end(value: dict[str, Any]) -> None:
    """The last link."""
    starts.note(value["number"])
