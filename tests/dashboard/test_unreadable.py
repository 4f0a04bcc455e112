"""The pages while the stream cannot be read, though the database answers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from playwright.sync_api import Page, expect

from runtime.local.migrations import apply_migrations, migrations_folder, read_migrations
from runtime.local.test_cluster import Cluster
from tests.cli.shell import Shell
from tests.dashboard.conftest import started
from tests.preforked import Preforked


@pytest.fixture
def bare(cluster: Cluster) -> Iterator[str]:
    """The URL of a new project's database."""
    with ThreadPoolExecutor(1) as elsewhere:
        # The browser's loop runs in this thread.
        name = elsewhere.submit(cluster.make_empty_database).result()
    yield cluster.url(name)
    cluster.drop_database(name)


def test_without_the_migrations_the_cure_is_told_and_pages_come_back_when_it_is_taken(
    bare: str, tmp_path: Path, preforked: Preforked, tab: Page
) -> None:
    shell = Shell(tmp_path, {"DATABASE_URL": bare}, preforked=preforked)
    with started(shell, "dashboard", "--no-open", "--port", "0", until="Dashboard:") as line:
        tab.goto(line.split()[-1] + "agents")
        expect(tab.locator("#health")).to_contain_text("The stream cannot be read")
        expect(tab.locator("#health")).to_contain_text("supabase db push")
        # Said once, and not that the database is away.
        expect(tab.locator("main")).to_have_text(
            "The stream cannot be shownThis page comes back by itself when the stream can be read."
        )
        with start_blocking_portal() as portal:
            portal.call(apply_migrations, bare, read_migrations(migrations_folder()))
        expect(tab.locator("h1")).to_have_text("Agents")
        expect(tab.locator("#health")).to_contain_text("No worker runs")
