"""What does the adapter of Pydantic AI cost? One handler runs an agent with it and without it, and takes bare steps."""

import time
from typing import Any

from pydantic_ai import Agent as Assistant
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from runtime import Agent, Context
from runtime.adapters.pydantic_ai import RuntimeDurability

agent = Agent("bench")
RUNS = 30
REQUESTS = 10
WORDS = "word " * 200


def script(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call a tool, again and again, and come to an end."""
    if sum(isinstance(message, ModelResponse) for message in messages) == REQUESTS - 1:
        return ModelResponse([TextPart(WORDS)])
    return ModelResponse([TextPart(WORDS), ToolCallPart("look", {})])


assistant = Assistant(FunctionModel(script), name="assistant")


@assistant.tool_plain(metadata={"step": False})
async def look() -> str:
    """Nothing, in the shape of a tool: only requests of the model are steps."""
    return "seen"


async def step() -> str:
    """Nothing, in the shape of an answer of the model."""
    return WORDS


@agent.on("bench", emits="bench.timed")
async def handle(value: dict[str, Any], context: Context) -> dict[str, list[float]]:
    """Runs of an agent, with the adapter and without it, and as many steps; in seconds for each request."""
    seconds: dict[str, list[float]] = {"with steps": [], "alone": [], "bare steps": []}
    for _ in range(RUNS):
        began = time.perf_counter()
        await assistant.run("Go on.", capabilities=[RuntimeDurability(context)])
        with_steps = time.perf_counter()
        await assistant.run("Go on.")
        alone = time.perf_counter()
        for _ in range(REQUESTS):
            await context.step("bare", step)
        bare = time.perf_counter()
        seconds["with steps"].append((with_steps - began) / REQUESTS)
        seconds["alone"].append((alone - with_steps) / REQUESTS)
        seconds["bare steps"].append((bare - alone) / REQUESTS)
    return seconds
