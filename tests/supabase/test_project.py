"""`supabase db push` works in a project that `runtime init` made or joined."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli import app
from runtime.local.test_cluster import Cluster
from tests.supabase.conftest import Cli


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty folder."""
    return tmp_path


@pytest.fixture
def hosted(cluster: Cluster) -> Iterator[str]:
    """A new project's database."""
    name = cluster.make_empty_database()
    yield cluster.url(name)
    cluster.drop_database(name)


def init(folder: Path) -> str:
    result = CliRunner().invoke(app, ["init", str(folder)])
    assert result.exit_code == 0, result.output
    return result.output


def test_an_empty_folder_becomes_a_project_that_can_be_pushed(
    supabase: Cli, project: Path, hosted: str
) -> None:
    init(project)
    said = supabase("db", "push", database=hosted)
    assert "WARN" not in said
    assert "create_stream.sql" in said
    assert "up to date" in supabase("db", "push", database=hosted)


def test_a_project_whose_own_migrations_are_later_is_pushed_with_the_option_that_init_names(
    supabase: Cli, project: Path, hosted: str
) -> None:
    folder = project / "supabase" / "migrations"
    folder.mkdir(parents=True)
    (folder / "20990101000000_own.sql").write_text("create schema own;")
    supabase("db", "push", database=hosted)
    assert "db push --include-all" in init(project)
    with pytest.raises(AssertionError, match="--include-all"):
        supabase("db", "push", database=hosted)
    assert "create_stream.sql" in supabase("db", "push", "--include-all", database=hosted)
    assert "up to date" in supabase("db", "push", database=hosted)
