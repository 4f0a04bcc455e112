"""`runtime mcp`: a client of the SDK starts it as an editor does, and talks to it over its standard streams."""

from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp.types import TextContent

from runtime import Agent
from runtime.settings import Settings
from runtime.worker.worker import Worker
from tests.cli.shell import Shell, error_line

pytestmark = pytest.mark.anyio

shop = Agent("shop")


@shop.on("price.wanted", tool="price_of")
async def price(item: str) -> dict[str, int]:
    """Know the price of a thing, in cents."""
    return {"cents": len(item)}


async def test_an_editor_starts_it_lists_the_tools_and_calls_one(shell: Shell, stack: Any) -> None:
    worker = Worker([shop], Settings.load(supabase_url=None, supabase_key=None, database_url=stack.db_url))
    program, *arguments = shell.command
    server = StdioServerParameters(
        command=program,
        args=[*arguments, "mcp", "--allow-writes"],
        env=dict(shell.environment),
        cwd=shell.folder,
    )
    with (shell.folder / "log").open("w") as log:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            async with Client(stdio_client(server, errlog=log)) as client:
                while not (
                    tools := {each.name for each in (await client.list_tools(cache_mode="bypass")).tools}
                ) >= {"price_of"}:
                    await anyio.sleep(0.05)
                assert "stream_send" in tools
                answer = await client.call_tool("price_of", {"value": "pen"})
                assert answer.content == [TextContent(text='{"cents":3}')]
            worker.stop()
    assert "Traceback" not in (shell.folder / "log").read_text()


def test_it_says_where_no_stream_is_named(nowhere: Shell) -> None:
    assert "runtime local start" in error_line(nowhere.run("mcp"))
