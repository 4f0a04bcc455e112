"""`supabase db lint` finds nothing to say about our functions."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime.local import keys
from runtime.local.test_cluster import Cluster
from tests.integration.conftest import connected
from tests.supabase.conftest import Cli

pytestmark = pytest.mark.anyio

CHECKER = Path("/usr/share/postgresql/15/extension/plpgsql_check.control")
BAD = (
    "create function runtime.bad() returns void language plpgsql set search_path = '' as $$ "
    "declare unused text; listed text[] := '{}'; begin listed := listed || 'one'; end $$"
)


@pytest.fixture
def linted(cluster_15: Cluster) -> Any:
    """The URL of a kernel beside what the CLI lints with, which only a superuser may install here."""
    if not CHECKER.exists():
        pytest.skip("plpgsql_check is not installed: apt-get install postgresql-15-plpgsql-check")
    name = cluster_15.make_database()

    async def install() -> None:
        async with connected(cluster_15.url(name, user=keys.SUPERUSER)) as connection:
            await connection.execute("create extension plpgsql_check")

    anyio.run(install)
    yield cluster_15.url(name)
    cluster_15.drop_database(name)


def findings(supabase: Cli, database: str) -> set[str]:
    """The functions that it has something to say about."""
    said = supabase("db", "lint", "--level=warning", "--schema=public,runtime", "-o=json", database=database)
    begin, end = said.find("["), said.rfind("]")
    return {each["function"] for each in json.loads(said[begin : end + 1])} if 0 <= begin < end else set()


def test_n9_db_lint_finds_nothing(supabase: Cli, linted: str) -> None:
    # What the checker itself brings is not ours.
    ours = {
        name for name in findings(supabase, linted) if "plpgsql_check" not in name and "profiler" not in name
    }
    assert ours == set()


def test_n9_db_lint_would_find_what_is_wrong(supabase: Cli, linted: str) -> None:
    async def spoil() -> None:
        async with connected(linted) as connection:
            await connection.execute(BAD)

    anyio.run(spoil)
    assert "runtime.bad" in findings(supabase, linted)
