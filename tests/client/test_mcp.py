"""Do language models get the handlers of agents as tools, and clear words where something fails?"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from mcp import Client, MCPDeprecationWarning, MCPError
from mcp.server.subscriptions import ResourceUpdated
from mcp.types import (
    CallToolResult,
    ElicitRequestFormParams,
    ElicitResult,
    ResourceUpdatedNotification,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel

from runtime import Agent, Context, Reject, connect
from runtime.client.mcp.server import StreamServer
from runtime.testing import Harness

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_suspended")]

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

shop = Agent("shop")
opened = anyio.Event()


class Part(BaseModel):
    name: str
    parts: list["Part"] = []


class Count(BaseModel):
    number: int


@shop.on("part.>", "part.counted", tool="count_parts")
async def count(part: Part) -> Count:
    """Count the parts of a part, itself included."""
    return Count(number=1 + sum([(await count(each)).number for each in part.parts]))


@shop.on("number.doubled", tool="double")
def double(number: int) -> int:
    return 2 * number


@shop.on("stock.told", tool="tell_stock")
async def tell(what: Any) -> str:
    if what == {"kind": "none"}:
        raise Reject("none left")
    return "many" * what.get("times", 1)


@shop.on("door.opened", tool="open_door")
async def open_door() -> str:
    await opened.wait()
    return "open"


class Terms(BaseModel):
    cents: int
    note: str | None = None


@shop.on("refund.wanted", tool="refund")
async def refund(order: int, context: Context) -> dict[str, Any]:
    """Refund an order, if a person approves."""
    decision = await context.approve(f"Refund order {order}?", details={"order": order}, answer=Terms)
    return {
        "approved": decision.approved,
        "cents": decision.answer and decision.answer.cents,
        "by": decision.by,
    }


@asynccontextmanager
async def client_of(harness: Harness, mode: str = "auto", **options: Any) -> AsyncIterator[Client]:
    """The SDK's own client, connected to a server of this stream."""
    callback = options.pop("elicitation_callback", None)
    settings = harness.settings.model_copy(update={"mcp_writes": options.pop("writes", False)})
    server = StreamServer(settings, **options).build()
    async with Client(server, mode=mode, elicitation_callback=callback) as client:
        yield client


def text(result: CallToolResult) -> str:
    """What a model reads of a result."""
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


@pytest.fixture(autouse=True)
def closed() -> None:
    """The door is closed."""
    global opened
    opened = anyio.Event()


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_handlers_are_tools_with_their_schemas_and_a_call_is_answered_by_one(
    harness: Harness, mode: str
) -> None:
    async with harness.running(shop):
        pass
    # The schemas are in the database: no agent runs, and this server has none of their code.
    async with client_of(harness, mode) as client:
        tools = {each.name: each for each in (await client.list_tools()).tools}
        assert {"count_parts", "double", "tell_stock", "open_door"} < tools.keys()
        assert tools["count_parts"].description == "Count the parts of a part, itself included."
        assert tools["count_parts"].input_schema["required"] == ["name"]
        assert tools["double"].input_schema["properties"]["value"]["type"] == "integer"
        assert "stream_send" not in tools
        async with harness.running(shop):
            part = {"name": "bike", "parts": [{"name": "wheel"}]}
            meta = {"traceparent": TRACE}
            counted = await client.call_tool("count_parts", part, meta=meta)
            assert (counted.structured_content or {})["result"] == {"number": 2}
            assert json.loads(text(counted)) == {"number": 2}
            assert text(await client.call_tool("double", {"value": 4})) == "8"
            [request] = await harness.messages("part.counted")
            assert request.headers["traceparent"].split("-")[1] == TRACE.split("-")[1]
            assert (request.agent, request.headers["tool"]) == ("mcp", "count_parts")


async def test_what_fails_is_told_in_words_and_the_server_goes_on(harness: Harness) -> None:
    async with harness.running(shop), client_of(harness) as client:
        wrong = await client.call_tool("count_parts", {"parts": [{"name": 1}]})
        assert wrong.is_error
        assert "'name' is a required property" in text(wrong)
        assert "nothing was sent" in text(wrong)
        assert await harness.messages("part.>") == []
        gone = await client.call_tool("tell_stock", {"kind": "none"})
        assert (gone.is_error, "none left" in text(gone)) == (True, True)
        huge = await client.call_tool("tell_stock", {"kind": "x" * (17 * 2**20)})
        assert (huge.is_error, "at most 16 MB" in text(huge)) == (True, True)
        nul = await client.call_tool("tell_stock", {"kind": "\0"})
        assert nul.is_error
        long = await client.call_tool("tell_stock", {"times": 100_000})
        assert len(text(long)) < 2_000
        assert "too many to be shown" in text(long)
        for name in ("no_such", "odd\x1b[2J\n‮", "", "x" * 100_000):
            with pytest.raises(MCPError, match="There is no tool") as unknown:
                await client.call_tool(name, {})
            assert str(unknown.value).isprintable()
            assert len(str(unknown.value)) < 200
        assert text(await client.call_tool("double", {"value": 4})) == "8"


async def test_a_slow_call_is_pending_and_its_result_comes_after_a_restart_of_everything(
    harness: Harness,
) -> None:
    async with client_of(harness, wait_seconds=0.1) as client:
        async with harness.running(shop):
            pass
        pending = await client.call_tool("open_door", {})
        assert not pending.is_error
        told = pending.structured_content or {}
        assert told["state"] == "pending"
        assert f"request={told['request']}" in text(pending)
    opened.set()
    async with harness.running(shop), client_of(harness) as client:
        result = await client.call_tool("stream_result", {"request": told["request"], "wait_seconds": 50})
        assert (result.structured_content or {})["state"] == "done"
        assert json.loads(text(result)) == "open"
        other = await harness.send("number.doubled", 4)
        refused = await client.call_tool("stream_result", {"request": other.id})
        assert (refused.is_error, "no call of a tool" in text(refused)) == (True, True)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_client_that_leaves_in_the_middle_leaves_its_call_and_the_server_behind(
    harness: Harness, mode: str
) -> None:
    server = StreamServer(harness.settings).build()
    async with harness.running(shop), Client(server, mode=mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "open_door", {})
            while not (requests := await harness.messages("door.opened")):
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        assert text(await client.call_tool("double", {"value": 4})) == "8"
        opened.set()
        again = {"request": requests[0].id, "wait_seconds": 50}
        assert json.loads(text(await client.call_tool("stream_result", again))) == "open"


async def test_a_call_can_be_cancelled_by_its_handle_and_nothing_else_can(harness: Harness) -> None:
    async with harness.running(shop), client_of(harness, wait_seconds=0.1) as client:
        request = ((await client.call_tool("open_door", {})).structured_content or {})["request"]
        assert json.loads(text(await client.call_tool("stream_cancel", {"request": request})))["known"]
        result = await client.call_tool("stream_result", {"request": request, "wait_seconds": 50})
        assert result.is_error
        # A request, but of a program.
        other = await harness.send("door.opened", {}, headers={"reply_to": "answer.program"})
        assert (await client.call_tool("stream_cancel", {"request": other.id})).is_error
        assert (await client.call_tool("stream_result", {"request": other.id})).is_error
        opened.set()


async def test_operators_look_by_tools_and_write_only_where_that_is_allowed(harness: Harness) -> None:
    async with harness.running(shop), connect(harness.settings) as stream:
        sent = await stream.send("stock.told", {"kind": "none"})
        await harness.drain()
        async with client_of(harness) as client:
            found = json.loads(text(await client.call_tool("stream_search", {"text": "NONE"})))
            assert [each["id"] for each in found["messages"]] == [sent.id]
            trace = json.loads(text(await client.call_tool("stream_trace", {"message": sent.id})))
            assert trace["messages"][0]["handled"][0]["state"] == "dead"
            [letter] = json.loads(text(await client.call_tool("stream_dead_letters", {})))
            assert letter["message_id"] == sent.id
            backlog = json.loads(text(await client.call_tool("stream_backlog", {})))
            assert {each["name"] for each in backlog["subscriptions"]} > {"shop.tell"}
            wrong = await client.call_tool("stream_trace", {"message": "all", "more": 1})
            assert (wrong.is_error, "message" in text(wrong)) == (True, True)
            assert (await client.call_tool("stream_search", {"pattern": "no pattern!"})).is_error
            with pytest.raises(MCPError, match="There is no tool 'stream_send'"):
                await client.call_tool("stream_send", {"key": "number.doubled", "value": 3})
        async with client_of(harness, writes=True) as client:
            redriven = await client.call_tool("stream_redrive", {"ids": [letter["id"]]})
            assert json.loads(text(redriven)) == {"redriven": 1}
            written = await client.call_tool("stream_send", {"key": "number.doubled", "value": 3})
            message = await stream.get(json.loads(text(written))["id"])
            assert message is not None
            assert (message.value, message.agent) == (3, "mcp")


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_keys_and_patterns_are_resources_and_their_watchers_hear_of_messages(
    harness: Harness, mode: str
) -> None:
    await harness.send("task.output", {"title": "first"})
    heard: list[str] = []
    news = anyio.Event()

    async def note(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            heard.append(message.params.uri)
            news.set()

    server = StreamServer(harness.settings).build()
    async with Client(server, mode=mode, message_handler=note) as client:
        listed = (await client.list_resources()).resources
        assert [each.uri for each in listed] == ["stream://task.output"]
        assert (await client.list_resource_templates()).resource_templates[
            0
        ].uri_template == "stream://{pattern}"
        for uri in ("stream://task.output", "stream://task.*", "stream://task.%3E", "stream://%3E/"):
            [found] = (await client.read_resource(uri)).contents
            assert isinstance(found, TextResourceContents)
            assert [each["value"] for each in json.loads(found.text)] == [{"title": "first"}]
        for uri in ("stream://no pattern!", "file:///etc/passwd", "stream://" + "x" * 100_000):
            with pytest.raises(MCPError, match=r"pattern|Resources are named") as wrong:
                await client.read_resource(uri)
            assert len(str(wrong.value)) < 500
        await harness.send("big.output", "x" * 300_000)
        [found] = (await client.read_resource("stream://big.output")).contents
        assert isinstance(found, TextResourceContents)
        assert json.loads(found.text)[0]["cut"]
        if mode == "legacy":
            with pytest.warns(MCPDeprecationWarning):
                await client.subscribe_resource("stream://task.*")
            await harness.send("task.ended", 1)
            await news.wait()
            assert set(heard) == {"stream://task.*"}
            with pytest.warns(MCPDeprecationWarning):
                await client.unsubscribe_resource("stream://task.*")
        else:
            async with client.listen(resource_subscriptions=["stream://task.*", "stream://other"]) as events:
                await harness.send("task.ended", 1)
                async for event in events:
                    assert event == ResourceUpdated("stream://task.*")
                    break


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_an_approval_is_a_question_to_the_person_in_front_of_the_client(
    harness: Harness, mode: str
) -> None:
    shown: list[ElicitRequestFormParams] = []
    answers = [
        # What does not fit is asked again.
        ElicitResult(action="accept", content={"approved": True, "answer_cents": "many"}),
        ElicitResult(action="accept", content={"approved": True, "answer_cents": 300, "why": "it was late"}),
        ElicitResult(action="decline"),
        ElicitResult(action="cancel"),
    ]

    async def decide(_: Any, params: Any) -> ElicitResult:
        shown.append(params)
        return answers.pop(0)

    options: dict[str, Any] = {"elicitation_callback": decide, "wait_seconds": 50}
    async with harness.running(shop), client_of(harness, mode, **options) as client:
        approved = json.loads(text(await client.call_tool("refund", {"value": 7})))
        assert (approved["approved"], approved["cents"]) == (True, 300)
        assert approved["by"].endswith("over MCP")
        assert shown[0].message.startswith("Refund order 7?\n")
        assert shown[0].requested_schema["properties"]["answer_cents"]["type"] == "integer"
        assert "The answer before did not fit" in shown[1].message
        declined = json.loads(text(await client.call_tool("refund", {"value": 8})))
        assert declined["approved"] is False
    options["wait_seconds"] = 1
    async with harness.running(shop), client_of(harness, mode, **options) as client:
        left = await client.call_tool("refund", {"value": 9})
        assert "waits for a person's approval: Refund order 9?" in text(left)
        assert answers == []
        # Nothing is left that the worker would wait for.
        await harness.decide(False)
        await harness.drain()


async def test_a_client_that_cannot_ask_is_told_what_a_call_waits_for(harness: Harness) -> None:
    async with harness.running(shop), client_of(harness, wait_seconds=1) as client:
        left = await client.call_tool("refund", {"value": 9})
        assert "waits for a person's approval: Refund order 9?" in text(left)
        await harness.decide(answer={"cents": 5})
        again = {"request": (left.structured_content or {})["request"], "wait_seconds": 50}
        assert json.loads(text(await client.call_tool("stream_result", again)))["cents"] == 5
