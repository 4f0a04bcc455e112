"""The real Supabase CLI applies the migrations, agrees with what the local stack recorded, finds no fault in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runtime.local.migrations import read_migrations
from runtime.local.test_cluster import Cluster
from tests.supabase.conftest import Cli

pytestmark = pytest.mark.anyio

HISTORY = "select version, name, statements from supabase_migrations.schema_migrations order by version"


@pytest.fixture(params=["pg15", "pg18"])
def server(request: pytest.FixtureRequest) -> Cluster:
    """Both versions, one after the other."""
    cluster: Cluster = request.getfixturevalue("cluster_15" if request.param == "pg15" else "cluster")
    return cluster


@pytest.fixture
def migrated(server: Cluster) -> Iterator[str]:
    """A database brought up to the migrations as `runtime local start` does it."""
    name = server.make_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def empty(server: Cluster) -> Iterator[str]:
    """A new project's database."""
    name = server.make_empty_database()
    yield server.url(name)
    server.drop_database(name)


async def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


def both_sides(listed: str) -> list[tuple[str, str]]:
    """The columns Local and Remote of `migration list`."""
    cells = [[cell.strip().strip("`") for cell in line.split("|")] for line in listed.splitlines()]
    return [(row[0], row[1]) for row in cells if len(row) == 3 and (row[0] + row[1]).isdigit()]


def versions(project: Path) -> list[tuple[str, str]]:
    found = [migration.version for migration in read_migrations(project / "supabase" / "migrations")]
    return list(zip(found, found, strict=True))


async def test_what_db_push_applies_and_records_is_what_the_local_stack_does(
    supabase: Cli, project: Path, empty: str, migrated: str
) -> None:
    said = supabase("db", "push", database=empty)
    assert "WARN" not in said
    assert said.count("Applying migration") == len(versions(project)) > 10
    assert both_sides(supabase("migration", "list", database=empty)) == versions(project)
    assert await rows(empty, HISTORY) == await rows(migrated, HISTORY)


async def test_db_push_has_nothing_left_to_do_after_the_local_stack(
    supabase: Cli, project: Path, migrated: str
) -> None:
    assert both_sides(supabase("migration", "list", database=migrated)) == versions(project)
    assert "Remote database is up to date." in supabase("db", "push", database=migrated)


async def test_the_advisors_find_nothing(supabase: Cli, migrated: str) -> None:
    assert "No issues found" in supabase("db", "advisors", "--fail-on", "warn", database=migrated)
