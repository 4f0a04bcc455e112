"""Agents of Pydantic AI in handlers, with the framework's own models for tests."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent as Assistant
from pydantic_ai import ApprovalRequired, CallDeferred, RunContext, ToolReturnPart
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from runtime import Agent, Context, Retry, connect
from runtime.adapters.pydantic_ai import RuntimeDurability
from runtime.testing import Harness

pytestmark = pytest.mark.anyio
SOON = Retry(attempts=3, first_seconds=0.01)


def returned(messages: list[ModelMessage]) -> dict[str, Any]:
    """The results of tools that a model has been told so far, by tool."""
    return {
        part.tool_name: part.content
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    }


class Scripted:
    """A model that looks a price up, then refunds it, then says so, and counts what it is paid for."""

    def __init__(self) -> None:
        self.requests = 0
        self.model = FunctionModel(self.answer, stream_function=self.stream)

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.requests += 1
        known = returned(messages)
        if "price" not in known:
            return ModelResponse([ToolCallPart("price", {"item": each}) for each in ("pen", "ink")])
        if "refund" not in known:
            return ModelResponse([TextPart("One moment."), ToolCallPart("refund", {"cents": 15})])
        return ModelResponse([TextPart(f"All is well: {known['refund']}.")])

    async def stream(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | DeltaToolCalls]:
        for number, part in enumerate(self.answer(messages, info).parts):
            if isinstance(part, TextPart):
                for word in part.content.split(" "):
                    yield f"{word} "
            elif isinstance(part, ToolCallPart):
                yield {number: DeltaToolCall(part.tool_name, part.args_as_json_str(), part.tool_call_id)}


async def test_no_model_request_and_no_call_of_a_tool_is_made_twice(harness: Harness) -> None:
    agent, scripted, called = Agent("desk"), Scripted(), list[str]()
    assistant = Assistant(scripted.model, name="assistant")

    @assistant.tool_plain
    def price(item: str) -> int:
        called.append(f"price {item}")
        return 5 * len(item)

    @assistant.tool_plain
    async def refund(cents: int) -> str:
        called.append(f"refund {cents}")
        return f"{cents} cents refunded"

    @agent.on("question.asked", emits="question.answered", retry=SOON)
    async def answer(question: str, context: Context) -> str:
        run = await assistant.run(question, capabilities=[RuntimeDurability(context)])
        return run.output

    async with harness.running(agent):
        async with harness.crash_after() as died:
            await harness.send("question.asked", "Where is my money?")
            await harness.drain()
        answers = [message.value for message in await harness.messages("question.answered")]
    assert answers == ["All is well: 15 cents refunded."]
    # Of the two prices at once, one has killed.
    assert died.count("assistant model") == 3
    assert set(died) == {"assistant model", "assistant tool price", "assistant tool refund"}
    assert scripted.requests == 3
    assert sorted(called) == ["price ink", "price pen", "refund 15"]


async def test_calls_that_need_approval_are_asked_at_once_and_suspend_the_delivery(harness: Harness) -> None:
    agent, requests, called = Agent("desk"), list[int](), list[tuple[str, Any]]()

    def decide(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        requests.append(len(messages))
        if known := returned(messages):
            return ModelResponse([TextPart(json.dumps(known))])
        return ModelResponse(
            [
                ToolCallPart("refund", {"cents": 900}),
                ToolCallPart("refund", {"cents": 7}),
                ToolCallPart("close", {"account": "ada"}),
                ToolCallPart("forget", {}),
                ToolCallPart("ask_ada", {"question": "Why?"}),
            ]
        )

    assistant = Assistant(FunctionModel(decide), name="assistant")

    @assistant.tool
    async def refund(run: RunContext, cents: int) -> str:
        called.append(("refund", cents))
        if cents > 100 and not run.tool_call_approved:
            raise ApprovalRequired(metadata={"title": f"Refund {cents} cents?"})
        return f"{cents} refunded"

    @assistant.tool_plain(requires_approval=True)
    def close(account: str) -> str:
        called.append(("close", account))
        return "closed"

    @assistant.tool_plain(requires_approval=True)
    def forget() -> None:
        called.append(("forget", None))

    @assistant.tool_plain
    def ask_ada(question: str) -> str:
        called.append(("ask_ada", question))
        raise CallDeferred

    @agent.on("question.asked", emits="question.answered", retry=SOON)
    async def answer(question: str, context: Context) -> Any:
        run = await assistant.run(question, capabilities=[RuntimeDurability(context)])
        return [
            [part.content, part.outcome]
            for message in run.all_messages()
            for part in message.parts
            if isinstance(part, ToolReturnPart)
        ]

    async with harness.running(agent), harness.crash_after() as died:
        await harness.send("question.asked", "Refund it, and close the account.")
        await harness.decide(True, title="Refund 900 cents?", by="ada")
        await harness.decide(False, title="Let assistant call forget?", why="We keep it.")
        await harness.decide(True, title="Let assistant call close?")
        await harness.decide(True, title="Let assistant call ask_ada?", answer="Because.")
        async with connect(harness.settings) as stream:
            while not (answers := await stream.read("question.answered")):
                await anyio.sleep(0.01)
    assert sorted(answers[0].value) == [
        ["7 refunded", "success"],
        ["900 refunded", "success"],
        ["Because.", "success"],
        ["We keep it.", "denied"],
        ["closed", "success"],
    ]
    assert len(requests) == 2
    # What asks is kept as well, so it is not called once more to ask again.
    assert sorted(called, key=str) == [
        ("ask_ada", "Why?"),
        ("close", "ada"),
        ("refund", 7),
        ("refund", 900),
        ("refund", 900),
    ]
    assert "approve Refund 900 cents?" in died
