"""The page of docs/browser.md, as it stands there, in a real browser: it asks, an agent answers, others see nothing."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn
from playwright.async_api import Browser, async_playwright
from starlette.applications import Starlette
from starlette.responses import FileResponse, HTMLResponse
from starlette.routing import Route

from runtime.agent.discovery import discover
from tests.integration.conftest import connected, running, settings_of, settled, until
from tests.local.gateway.conftest import QuietServer, make_token
from tests.node import installed

pytestmark = pytest.mark.anyio

DOCUMENT = Path(__file__).parents[3] / "docs" / "browser.md"
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
USERS = [f"{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}" for digit in "12"]


def block(language: str) -> str:
    """The one block of this language in the document."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.S)
    assert len(blocks) == 1
    return blocks[0]


def page(stack: Any, token: str) -> str:
    """The page as its reader would adapt it to the local stack: other URL and key, a token instead of Auth."""
    html, own = block("html"), block("js")
    signed_in = re.compile(r"  const client = supabase.*?auth\.getUser\(\)\n", re.S)
    assert signed_in.search(html)
    html = signed_in.sub(lambda _: own, html)
    for written, meant in {
        "https://cdn.jsdelivr.net/npm/@supabase/supabase-js@2.109.0": "/supabase.js",
        "http://127.0.0.1:54321": stack.api_url,
        "sb_publishable_…": stack.publishable_key,
        "() => token": f"() => '{token}'",
        "token.split": f"'{token}'.split",
    }.items():
        assert html.count(written) == 1, written
        html = html.replace(written, meant)
    return html


@asynccontextmanager
async def served(pages: dict[str, str]) -> AsyncIterator[str]:
    """A web server with these pages and the bundle of supabase-js; yields its URL."""
    bundle = (await anyio.to_thread.run_sync(installed)) / "node_modules/@supabase/supabase-js/dist/umd"
    routes = [
        Route("/supabase.js", lambda _: FileResponse(bundle / "supabase.js")),
        *(Route(f"/{name}", lambda _, html=html: HTMLResponse(html)) for name, html in pages.items()),
    ]
    server = QuietServer(
        uvicorn.Config(Starlette(routes=routes), port=0, lifespan="off", log_level="warning")
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        with anyio.fail_after(60):
            await server.has_started.wait()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = server.force_exit = True


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium, with a profile of its own."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=chromium, args=QUIET)
        try:
            yield started
        finally:
            await started.close()


async def test_the_page_of_the_document(stack: Any, tmp_path: Path) -> None:
    (tmp_path / "oracle.py").write_text(block("python"))
    agents = discover([str(tmp_path / "oracle.py")])
    tokens = [make_token(role="authenticated", sub=user, secret=stack.jwt_secret) for user in USERS]
    silent = page(stack, tokens[1]).replace("ask('What is the answer?')", "document.title = 'listening'")
    async with (
        connected(stack.db_url) as connection,
        running(agents, settings_of(stack)),
        served({"asking": page(stack, tokens[0]), "silent": silent}) as url,
        browser() as chromium,
    ):
        await connection.execute(block("sql"))
        await until(lambda: settled(connection, "oracle.answer"))
        faults: list[str] = []
        other = await chromium.new_page()
        asking = await chromium.new_page()
        for tab in (other, asking):
            tab.on("pageerror", lambda error: faults.append(str(error)))
        await other.goto(f"{url}/silent")
        await other.wait_for_function("document.title === 'listening'", timeout=30_000)
        await asking.goto(f"{url}/asking")
        await asking.wait_for_selector("#answers li", timeout=30_000)
        assert await asking.locator("#answers li").all_text_contents() == ["42 to What is the answer?"]
        # The other user's answer comes, and the first one's would have come before it.
        await connection.execute(
            "insert into consciousness_stream (key, value, correlation_id) values ('answer.given', '\"own\"', $1)",
            USERS[1],
        )
        await other.wait_for_selector("#answers li", timeout=30_000)
        assert await other.locator("#answers li").all_text_contents() == ["own"]
        assert faults == []
