"""Agents of Pydantic AI in handlers: model requests and tool calls are steps, approvals are asked of people.

    await assistant.run(question, capabilities=[RuntimeDurability(context)])

The agent stays as it is, and so does the code around the run: steps are known by their name, key and occurrence.
"""

from runtime.extras import needing

with needing("runtime.adapters.pydantic_ai", "pydantic-ai"):
    from runtime.adapters.pydantic_ai.durability import RuntimeDurability, record_usage

__all__ = ["RuntimeDurability", "record_usage"]
