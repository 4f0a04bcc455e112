"""A first agent: it wakes when somebody writes a name under `greeting.wanted`, and writes a greeting back.

runtime dev
runtime send greeting.wanted '{"name": "Ada"}'
"""

from pydantic import BaseModel

from runtime import Agent, Context

agent = Agent("greeter")


class Wanted(BaseModel):
    """Whom to greet."""

    name: str


class Greeting(BaseModel):
    """What is written under `greeting.ready`."""

    text: str


@agent.on("greeting.wanted", emits="greeting.ready")
async def greet(wanted: Wanted, context: Context) -> Greeting:
    """Greet somebody."""
    context.log.info("greeting %s", wanted.name)
    return Greeting(text=f"Hello, {wanted.name}!")
