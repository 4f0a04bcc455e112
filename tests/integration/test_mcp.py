"""Tools behind HTTP: `runtime serve` with its agents, and the SDK's own client, which brings the token."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx2 import AsyncClient
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

from tests.integration.conftest import connected, settled, until
from tests.integration.test_webhooks_in import serving

pytestmark = pytest.mark.anyio

TOKEN = "a-token-that-is-long-enough-to-be-exposed-to-others"
AGENTS = """
from runtime import Agent

shop = Agent("shop")

@shop.on("price.wanted", tool="price_of")
async def price(item: str) -> int:
    return len(item)
"""


async def test_tools_are_called_over_http_by_those_who_bring_the_token_and_by_no_page_of_another_site(
    stack: Any, tmp_path: Path
) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    async with (
        serving(stack, tmp_path, source=AGENTS, RUNTIME_MCP_TOKEN=TOKEN) as server,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(base_url=server.url) as anybody,
    ):
        await until(lambda: settled(connection, "shop.price"))

        async def is_served() -> bool:
            return (await anybody.get("/mcp", headers=bearer)).status_code != 503

        await until(is_served)
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        for headers, status in (
            ({}, 401),
            ({"authorization": "Bearer no"}, 401),
            ({**bearer, "origin": "https://evil.example"}, 403),
            ({**bearer, "origin": "null"}, 403),
            ({**bearer, "content-type": "text/plain"}, 400),
        ):
            answer = await anybody.post("/mcp", json=call, headers=headers)
            assert answer.status_code == status, headers
            assert "price_of" not in answer.text
        huge = await anybody.post("/mcp", content=b"{" * (17 * 2**20), headers=bearer)
        assert huge.status_code == 413
        for mode in ("legacy", "auto"):
            async with (
                AsyncClient(headers=bearer) as brought,
                Client(streamable_http_client(f"{server.url}/mcp", http_client=brought), mode=mode) as client,
            ):
                assert "stream_send" not in {each.name for each in (await client.list_tools()).tools}
                answered = await client.call_tool("price_of", {"value": "pen"})
                assert answered.content == [TextContent(text="3")]
        server.process.terminate()
        await until(lambda: server.process.returncode is not None)
        assert "Traceback" not in server.log.read_text()
        assert TOKEN not in server.log.read_text()


async def test_a_token_that_others_could_guess_is_refused_at_the_start(tmp_path: Path) -> None:
    class Nowhere:
        api_url, service_role_key = "http://127.0.0.1:9", "a.b.c"

    with pytest.raises(AssertionError, match="RUNTIME_MCP_TOKEN has 4 characters"):
        async with serving(Nowhere, tmp_path, source=AGENTS, RUNTIME_MCP_TOKEN="word"):
            pass
