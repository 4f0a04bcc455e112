"""Agents of Pydantic AI in handlers, with the framework's own models for tests."""

import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from mcp.server.mcpserver import MCPServer
from pydantic_ai import Agent as Assistant
from pydantic_ai import ApprovalRequired, CallDeferred, ModelRetry, RunContext, Tool, ToolReturnPart
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    ToolCallPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from runtime import Agent, Context, Message, Retry, Stream, TextPiece, connect
from runtime.adapters.pydantic_ai import RuntimeDurability
from runtime.adapters.pydantic_ai.durability import MAX_DETAIL_BYTES
from runtime.adapters.pydantic_ai.transcript import Transcript
from runtime.agent.text import MAX_CHARACTERS, OpenText
from runtime.errors import InvalidValue
from runtime.testing import Harness

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
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


async def has_come(stream: Stream, message: int, state: str) -> None:
    """Wait until the one handler of a message is there."""
    with anyio.fail_after(60):
        while True:
            found = (await stream.views.trace(message))["messages"]
            if [each["state"] for each in found[0]["handled"]] == [state]:
                return
            await anyio.sleep(0.02)


class Scripted:
    """A model that looks a price up, then refunds it, then says so, and counts what it is paid for."""

    def __init__(self) -> None:
        self.requests = 0
        self.pause: Callable[[], Awaitable[object]] = checkpoint
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
                    await self.pause()
            elif isinstance(part, ToolCallPart):
                yield {
                    number: DeltaToolCall(
                        part.tool_name, part.args_as_json_str(), tool_call_id=part.tool_call_id
                    )
                }


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
        with assistant.parallel_tool_call_execution_mode("sequential"):
            run = await assistant.run(question, capabilities=[RuntimeDurability(context)])
        return run.output

    # One tool after the other, so that each death finds the same done.
    async with harness.running(agent):
        async with harness.crash_after() as died:
            await harness.send("question.asked", "Where is my money?")
            await harness.drain(seconds=60)
        answers = [message.value for message in await harness.messages("question.answered")]
    assert answers == ["All is well: 15 cents refunded."]
    model, price_, refund_ = "assistant model", "assistant tool price", "assistant tool refund"
    assert died == [model, price_, price_, model, refund_, model]
    assert scripted.requests == 3
    assert sorted(called) == ["price ink", "price pen", "refund 15"]


def paper_desk(notes: Path, *, dies: bool) -> Agent:
    """An agent that notes what it pays for, and perhaps has its process killed in the middle of its second tool."""
    agent, scripted = Agent("desk"), Scripted()

    def note(what: str) -> None:
        with notes.open("a") as file:
            file.write(f"{what}\n")

    def ask(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        note("model")
        return scripted.answer(messages, info)

    assistant = Assistant(FunctionModel(ask), name="assistant")

    @assistant.tool_plain
    def price(item: str) -> int:
        note(f"price {item}")
        return 5 * len(item)

    @assistant.tool_plain
    async def refund(cents: int) -> str:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{cents} cents refunded"

    @agent.on("question.asked", emits="question.answered", retry=SOON)
    async def answer(question: str, context: Context) -> str:
        run = await assistant.run(question, capabilities=[RuntimeDurability(context)])
        return run.output

    return agent


PROGRAM = """
import sys, anyio
from pathlib import Path
from runtime import Worker
from runtime.settings import Settings
from tests.adapters.test_pydantic_ai import paper_desk
settings = Settings.load(supabase_url=None, supabase_key=None, lease_seconds=1)
anyio.run(Worker([paper_desk(Path(sys.argv[1]), dies=True)], settings).run)
"""


async def test_a_process_that_is_killed_has_paid_for_nothing_that_is_paid_for_again(
    harness: Harness, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    url = harness.settings.database_url
    assert url is not None
    # The subscription is there before the message, and before the process that dies of it.
    async with harness.running(paper_desk(notes, dies=False)):
        pass
    await harness.send("question.asked", "Where is my money?")
    environment = {**os.environ, "DATABASE_URL": url.get_secret_value()}
    process = await anyio.run_process(
        [sys.executable, "-c", PROGRAM, str(notes)], env=environment, check=False, cwd=ROOT, stdout=None
    )
    assert process.returncode == -signal.SIGKILL
    assert sorted(notes.read_text().splitlines()) == ["model", "model", "price ink", "price pen"]
    async with harness.running(paper_desk(notes, dies=False), sweep_seconds=0.2):
        await harness.drain(seconds=60)
    [answered] = await harness.messages("question.answered")
    assert answered.value == "All is well: 15 cents refunded."
    assert notes.read_text().splitlines().count("model") == 3
    assert len(notes.read_text().splitlines()) == 5


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

    assistant = Assistant(FunctionModel(decide), name="assistant", deps_type=Context)

    @assistant.tool
    async def refund(run: RunContext, cents: int) -> str:
        called.append(("refund", cents))
        if cents > 100 and not run.tool_call_approved:
            raise ApprovalRequired(metadata={"title": f"Refund {cents} cents?"})
        return f"{cents} refunded"

    @assistant.tool(requires_approval=True)
    async def close(run: RunContext[Context], account: str) -> str:
        closed = await run.deps.wait_for("account.closed")
        called.append(("close", account))
        return f"closed by {closed.value}"

    @assistant.tool_plain(requires_approval=True)
    def forget() -> None:
        called.append(("forget", None))

    @assistant.tool_plain
    def ask_ada(question: str) -> str:
        called.append(("ask_ada", question))
        raise CallDeferred

    @agent.on("question.asked", emits="question.answered", retry=SOON)
    async def answer(question: str, context: Context) -> Any:
        run = await assistant.run(question, deps=context, capabilities=[RuntimeDurability(context)])
        return [
            [part.content, part.outcome]
            for message in run.all_messages()
            for part in message.parts
            if isinstance(part, ToolReturnPart)
        ]

    async with harness.running(agent), connect(harness.settings) as stream:
        asked = await stream.send("question.asked", "Refund it, and close the account.")
        await has_come(stream, asked.id, "suspended")
        await harness.decide(True, title="Refund 900 cents?", by="ada")
        await harness.decide(False, title="Let assistant call forget?", why="We keep it.")
        await harness.decide(True, title="Let assistant call close?")
        # The others do not wait for the last one to be asked, and it is suspended once more.
        await harness.decide(True, title="Let assistant call ask_ada?", answer="Because.")
        while not any(wait["pattern"] == "account.closed" for wait in await stream.operations.waits()):
            await anyio.sleep(0.02)
        await has_come(stream, asked.id, "suspended")
        await stream.send("account.closed", "bob")
        await has_come(stream, asked.id, "done")
        answers = await stream.read("question.answered")
    assert sorted(answers[0].value) == [
        ["7 refunded", "success"],
        ["900 refunded", "success"],
        ["Because.", "success"],
        ["We keep it.", "denied"],
        ["closed by bob", "success"],
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


async def test_readers_follow_a_run_while_it_is_written_over_a_wait_and_a_failure(harness: Harness) -> None:
    agent, scripted, is_read, broken = Agent("desk"), Scripted(), anyio.Event(), list[int]()
    assistant = Assistant(scripted.model, name="assistant")

    async def pause() -> None:
        await is_read.wait()
        if scripted.requests == 3 and not broken:
            broken.append(3)
            raise ConnectionError("the provider is away")

    @assistant.tool_plain
    def price(item: str) -> int:
        return 5 * len(item)

    @assistant.tool_plain(requires_approval=True)
    async def refund(cents: int) -> str:
        return f"{cents} cents refunded"

    @agent.on("question.asked", emits="question.answered", retry=SOON)
    async def answer(question: str, context: Context) -> str:
        durability = RuntimeDurability(context, text="answer", events="events")
        run = await assistant.run(question, capabilities=[durability])
        return run.output

    async def follow(stream: Stream, message: int, name: str) -> None:
        async for piece in stream.follow(message, name):
            followed[name].append(piece)
            if name == "answer" and piece.text:
                is_read.set()

    def text(name: str, beginning: int) -> str:
        return "".join(piece.text for piece in followed[name] if piece.beginning == beginning)

    scripted.pause = pause
    followed: dict[str, list[TextPiece]] = {"answer": [], "events": []}
    async with harness.running(agent), connect(harness.settings) as stream:
        asked = await stream.send("question.asked", "Where is my money?")
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for name in followed:
                    tasks.start_soon(follow, stream, asked.id, name)
                await has_come(stream, asked.id, "suspended")
                await harness.decide(True, by="ada")
    # The wait begins nothing anew, what fails does. The model went on when its first word had been read.
    assert text("answer", 1).startswith("One ")
    assert "One moment. \n\nAll ".startswith(text("answer", 1))
    assert text("answer", 2) == "One moment. \n\nAll is well: 15 cents refunded. "
    # In the order in which tools that ran at the same time have ended: another one begins the events anew.
    whole = text("events", followed["events"][-1].beginning)
    events = [json.loads(line) for line in whole.splitlines()]
    kinds = [event["event_kind"] for event in events]
    assert kinds[:2] == ["part_end", "part_end"]
    assert kinds.count("function_tool_call") == kinds.count("function_tool_result") == 3
    assert kinds[-1] == "part_end"
    assert '"ada"' in whole
    # The one that broke counts.
    assert scripted.requests == 4


async def test_tools_of_every_kind_and_agents_in_them_are_called_once(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    agent, server, called, runs = Agent("desk"), MCPServer("words"), Counter[str](), set[str | None]()
    used: list[dict[str, Any] | None] = []

    @server.tool()
    def words(text: str) -> int:
        called["words"] += 1
        return len(text.split())

    def script(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        called["model"] += 1
        if not (known := returned(messages)):
            parts = [
                ToolCallPart("words", {"text": "one two"}),
                ToolCallPart("look", {}),
                ToolCallPart("strict", {"number": 0}),
            ]
            return ModelResponse([*parts, *(ToolCallPart("delegate", {"task": task}) for task in "ab")])
        if called["strict"] < 2:
            return ModelResponse([ToolCallPart("strict", {"number": 1})])
        return ModelResponse([TextPart(f"{known['words']} words, {known['strict']} {known['delegate']}")])

    def help_out(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        called["helper"] += 1
        return ModelResponse([TextPart("done")])

    helper = Assistant(FunctionModel(help_out), name="helper")
    assistant = Assistant(
        FunctionModel(script), name="assistant", deps_type=Context, toolsets=[MCPToolset(server)]
    )

    @assistant.tool
    async def delegate(run: RunContext[Context], task: str) -> str:
        called["delegate"] += 1
        noted = await run.deps.step("note", str.upper, task)
        done = await helper.run(task, capabilities=[RuntimeDurability(run.deps)])
        return f"{noted} {done.output}"

    @assistant.tool(metadata={"step": False})
    async def look(run: RunContext[Context]) -> str:
        called["look"] += 1
        runs.add(run.run_id)
        return "seen"

    @assistant.tool_plain
    def strict(number: int) -> str:
        called["strict"] += 1
        if number == 0:
            raise ModelRetry("not that number")
        return "strictly"

    @agent.on("question.asked", emits="question.answered", retry=SOON)
    async def answer(question: str, context: Context) -> str:
        with assistant.parallel_tool_call_execution_mode("sequential"):
            run = await assistant.run(question, deps=context, capabilities=[RuntimeDurability(context)])
        used.append(context.used)
        return run.output

    async with harness.running(agent):
        async with harness.crash_after() as died:
            await harness.send("question.asked", "What is it?")
            await harness.drain(seconds=60)
        [answered] = await harness.messages("question.answered")
    # The second call has not got what the first one had noted.
    assert answered.value == "2 words, strictly B done"
    assert died.count("helper model") == 2
    # In every attempt but those that died before it.
    assert called.pop("look") == len(died) - 1
    # An agent that a tool runs goes on within it: the tool is called again, its model is not.
    assert called == {"model": 3, "words": 1, "strict": 2, "helper": 2, "delegate": 6}
    assert len(runs) == 1
    # All that was paid for was paid for in attempts that died.
    assert used == [None]
    assert "no longer asks" not in caplog.text


async def run_tool(answer: Callable[[], object], call: ToolCallPart, **options: Any) -> str:
    """Have a model call a tool, and repeat what it is told."""

    def script(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if known := returned(messages):
            return ModelResponse([TextPart(str(known[call.tool_name]))])
        return ModelResponse([call])

    context = Context(Message(1, "question.asked", ""), "desk.answer")
    assistant = Assistant(
        FunctionModel(script), name="assistant", tools=[Tool(answer, name=call.tool_name, **options)]
    )
    run = await assistant.run("Go on.", capabilities=[RuntimeDurability(context)])
    return run.output


@pytest.mark.parametrize(
    ("result", "error"),
    [
        ("x" * 2**20, "The result of step 'assistant tool dig' takes 1.0 MB as JSON; at most 1 MB are kept"),
        (
            object(),
            "A step of the agent returned what has no JSON form: Unable to serialize unknown type: <class 'object'>",
        ),
    ],
)
async def test_a_result_that_cannot_be_kept_is_named(result: object, error: str) -> None:
    with pytest.raises(InvalidValue, match=error):
        await run_tool(lambda: result, ToolCallPart("dig", {}))


@pytest.mark.parametrize("odd", ["x" * 1_000, "nul\0", "a/b", "\ud800", "ключ" * 60])
async def test_a_call_may_have_any_id_and_a_result_any_characters(odd: str) -> None:
    assert await run_tool(lambda: ["\0", "\\u0000"], ToolCallPart("dig", {}, odd)) == str(["\0", "\\u0000"])


async def test_runs_one_after_the_other_and_calls_with_the_same_id_are_told_apart() -> None:
    def script(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        count = sum(isinstance(message, ModelResponse) for message in messages)
        if count < 2:
            return ModelResponse([ToolCallPart("dig", {}, "call_0")])
        return ModelResponse([TextPart("dug")])

    async def dig(run: RunContext[Context]) -> str:
        return await run.deps.step("note", lambda: "noted")

    context = Context(Message(1, "question.asked", ""), "desk.answer")
    assistant = Assistant(FunctionModel(script), name="assistant", deps_type=Context, tools=[dig])
    ids = set()
    for _ in range(2):
        run = await assistant.run("Go on.", deps=context, capabilities=[RuntimeDurability(context)])
        ids.add(run.run_id)
    assert len(ids) == 2
    places = sorted(context.opened_steps.kept)
    assert [(name, key) for name, key, occurrence in places if occurrence == 1] == [
        ("assistant model", ""),
        ("assistant model", "run 2"),
        ("assistant tool dig", "call_0"),
        ("assistant tool dig", "call_0 (2)"),
        ("assistant tool dig", "run 2/call_0"),
        ("assistant tool dig", "run 2/call_0 (2)"),
        ("note", "call_0"),
        ("note", "call_0 (2)"),
        ("note", "run 2/call_0"),
        ("note", "run 2/call_0 (2)"),
    ]


async def test_people_are_not_asked_about_more_than_they_are_shown() -> None:
    huge = ToolCallPart("dig", {"holes": "x" * MAX_DETAIL_BYTES})
    told = await run_tool(lambda holes: 7, huge, requires_approval=True)
    assert re.fullmatch(r"What it is about takes 65,\d+ bytes; people are shown 65,536 at most\.", told)


async def test_a_run_goes_on_when_its_texts_are_full() -> None:
    words, events = (OpenText(name, None, set()) for name in ("words", "events"))
    async with words, events:
        transcript = Transcript(words, events)
        for size in (MAX_CHARACTERS - 10, 11, 5):
            await transcript.write(PartStartEvent(index=0, part=TextPart("x" * size)))
            await transcript.write(PartEndEvent(index=0, part=TextPart("y" * size)))
    assert words.length == MAX_CHARACTERS - 10
    assert 10_000 < events.length < 11_000
