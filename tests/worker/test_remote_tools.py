"""Tools of MCP servers, called from handlers: each call is a step, whatever becomes of the attempt."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.server import MCPServer
from pydantic import BaseModel

from runtime import Agent, Context, Retry
from runtime.errors import InvalidValue, ToolFailed
from runtime.local.ports import free_port
from tests.integration.conftest import until
from tests.worker.test_steps import SOON, deliver, error_of

pytestmark = pytest.mark.anyio

SERVER = """
import os, sys
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("pens")

@server.tool()
def price(pen: str, context: Context) -> dict[str, int]:
    with open(sys.argv[1], "a") as log:
        print(pen, context.request_context.meta.get("agent-runtime/idempotencyKey"), file=log)
    return {"cents": len(pen)}

@server.tool()
def variables() -> str:
    return ",".join(sorted(os.environ))

@server.tool()
def breaks() -> str:
    raise ToolError("no such pen: the till is closed")

@server.tool()
def huge() -> str:
    return "x" * (3 * 2**20)

if sys.argv[2:]:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
else:
    server.run()
"""


class Price(BaseModel):
    cents: int


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The command of a server that writes down the calls of one tool."""
    (tmp_path / "server.py").write_text(SERVER)
    return [sys.executable, str(tmp_path / "server.py"), str(tmp_path / "calls")]


async def test_g12_a_call_of_a_tool_is_a_step_that_no_later_attempt_makes_again(
    database: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILL_SECRET", "hidden")
    agent, results = Agent("shop"), list[Any]()

    @agent.on("task.input", retry=SOON)
    async def sell(order: int, context: Context) -> None:
        shop = context.mcp(command, env={"PENS": "1"})
        prices: dict[str, Any] = {}

        async def ask(pen: str) -> None:
            prices[pen] = await shop.call("price", {"pen": pen}, returns=Price)

        async with anyio.create_task_group() as tasks:
            # At the same time: the arguments tell the steps apart.
            tasks.start_soon(ask, "red")
            tasks.start_soon(ask, "green")
        names = (await shop.call("variables")).split(",")
        results.append((prices, "PENS" in names, "TILL_SECRET" in names))
        if context.attempt == 1:
            raise ValueError("not yet")

    await deliver(database, agent)
    assert results == [({"red": Price(cents=3), "green": Price(cents=5)}, True, False)] * 2
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert sorted(pen for pen, _ in calls) == ["green", "red"]
    assert len({key for _, key in calls} - {"None"}) == 2


async def test_a_tool_that_fails_fails_the_attempt_with_what_it_says(
    database: str, command: list[str]
) -> None:
    agent, told = Agent("shop"), list[str]()

    @agent.on("task.input", retry=Retry(attempts=1))
    def sell(order: int, context: Context) -> None:
        shop = context.mcp(command)
        for tool, arguments in (("breaks", {}), ("price", {"pen": 7, "more": "x"}), ("absent", {})):
            with pytest.raises(ToolFailed) as failure:
                shop.call_blocking(tool, arguments)
            told.append(str(failure.value))
        with pytest.raises(InvalidValue, match="at most 1 MB"):
            shop.call_blocking("huge")
        nowhere = context.mcp("http://127.0.0.1:9/mcp?token=hush", headers={"authorization": "Bearer hush"})
        nowhere.call_blocking("price", {"pen": "red"})

    await deliver(database, agent, dead=1)
    assert "the till is closed" in told[0]
    assert "pen" in told[1]
    assert "absent" in told[2]
    error = await error_of(database)
    assert "Tool 'price' of 127.0.0.1:9 could not be called" in error
    assert "hush" not in error


@asynccontextmanager
async def served(command: list[str]) -> AsyncIterator[str]:
    """The URL of a server behind HTTP."""
    port = free_port()
    async with await anyio.open_process([*command, str(port)], env=dict(os.environ)) as process:

        async def listens() -> bool:
            try:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
            except OSError:
                return False
            return True

        await until(listens)
        try:
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()


async def test_tools_are_called_over_http_and_by_a_client_that_the_lifespan_keeps_open(
    database: str, command: list[str]
) -> None:
    local = MCPServer("local")

    @local.tool()
    def double(number: int) -> int:
        return 2 * number

    agent, results = Agent("shop"), list[Any]()

    @agent.lifespan
    async def open_client() -> AsyncIterator[Client]:
        async with Client(local) as client:
            yield client

    async with served(command) as url:

        @agent.on("task.input", retry=SOON)
        async def sell(order: int, context: Context) -> None:
            results.append(await context.mcp(url, headers={"x-shop": "1"}).call("price", {"pen": "blue"}))
            results.append(await context.mcp(context.state).call("double", {"number": 4}))

        await deliver(database, agent)
    assert results == [{"cents": 4}, 8]


@pytest.mark.parametrize(
    ("server", "more", "words"),
    [
        ("shop", {}, "the server's URL"),
        ("file:///etc/passwd", {}, "the server's URL"),
        ([], {}, "the program first"),
        (7, {}, "not 7"),
        (["true"], {"headers": {"a": "b"}}, "at a URL"),
        ("https://shop.example/mcp", {"env": {"a": "b"}}, "is a command"),
        ("https://shop.example/mcp", {"timeout": 0}, "above 0"),
    ],
)
def test_what_is_no_server_is_refused_at_once(server: Any, more: dict[str, Any], words: str) -> None:
    context = Context(message=None, handler="shop.sell")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=words):
        context.mcp(server, **more)
