"""A real stack with agents in a process of their own, the dashboard in another, and a browser that looks at it."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pydantic import SecretStr

from runtime.client.stream import Stream, connect
from runtime.local.test_cluster import Cluster
from runtime.settings import Settings
from tests.cli.shell import Shell
from tests.conftest import GatewayStack, _stack
from tests.dashboard.crowd import crowd
from tests.forked_gateway import GatewayForks
from tests.preforked import Preforked

AGENTS = Path(__file__).parent / "newsroom.py"
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

# Only for what hangs: a busy machine takes its time.
expect.set_options(timeout=60_000)


@dataclass
class Stage:
    """Where a test plays: the stack, the dashboard's URL, and the stream as a script sees it.

    Attributes:
        shell: names the stack to commands.
    """

    stack: GatewayStack
    shell: Shell
    url: str
    stream: Stream
    portal: BlockingPortal

    def send(self, key: str, value: Any, **more: Any) -> int:
        """Write one message; returns its id."""
        return self.portal.call(lambda: self.stream.send(key, value, **more)).id

    def ask(self, call: Callable[[], Any]) -> Any:
        """Await something on the stream's loop."""
        return self.portal.call(call)


@contextmanager
def started(shell: Shell, *arguments: str, until: str) -> Iterator[str]:
    """A command that runs, once it has said this on stdout or stderr; yields the line, and ends it by SIGTERM."""
    process = shell.start(*arguments)
    try:
        stream = process.stdout if until.startswith("Dashboard") else process.stderr
        assert stream is not None
        line = next((line for line in stream if until in line), "")
        assert line, process.stderr.read() if process.stderr else ""
        yield line.strip()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def opened(stack: GatewayStack) -> Iterator[tuple[Stream, BlockingPortal]]:
    """The stream as a script has it."""
    settings = Settings.load(
        supabase_url=stack.api_url, supabase_key=SecretStr(stack.service_role_key), database_url=None
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(connect(settings)) as stream:
        yield stream, portal


@pytest.fixture(scope="package")
def large_stack(cluster: Cluster, gateway_forks: GatewayForks) -> Iterator[GatewayStack]:
    """A stack with a million rows, which all these tests share."""
    with contextmanager(_stack)(cluster, cluster.make_database(), gateway_forks) as stack:
        anyio.run(crowd, stack.admin_url)
        yield stack


@pytest.fixture(scope="package")
def shell(large_stack: GatewayStack, tmp_path_factory: pytest.TempPathFactory, preforked: Preforked) -> Shell:
    """A shell whose environment names that stack."""
    named = {
        "SUPABASE_URL": large_stack.api_url,
        "SUPABASE_SERVICE_ROLE_KEY": large_stack.service_role_key,
    }
    return Shell(tmp_path_factory.mktemp("dashboard"), named, preforked=preforked)


@pytest.fixture(scope="package")
def stage(large_stack: GatewayStack, shell: Shell) -> Iterator[Stage]:
    """Agents that run, and the dashboard."""
    with (
        started(shell, "run", str(AGENTS), until="live: woken by"),
        started(shell, "dashboard", str(AGENTS), "--no-open", "--port", "0", until="Dashboard:") as line,
        opened(large_stack) as (stream, portal),
    ):
        yield Stage(large_stack, shell, line.split()[-1].rstrip("/"), stream, portal)


# While it is there, no other loop can run in this thread: no test elsewhere may meet it.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield found
        found.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A tab in which nothing may go wrong: no script error, no breach of the content security policy."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
    yield page
    context.close()
    assert faults == []
