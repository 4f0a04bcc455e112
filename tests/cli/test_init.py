"""`runtime init`: does a project get everything it needs, and keep everything it has?"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
from typer.testing import CliRunner, Result

from runtime.agent.discovery import discover
from runtime.cli import app
from runtime.local.migrations import apply_migrations, migrations_folder, read_migrations

OURS = [migration.file_name for migration in read_migrations(migrations_folder())]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


def contents(folder: Path) -> dict[str, str]:
    """Every file's text, by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def report(folder: Path, *arguments: str) -> dict[str, Any]:
    """What the command says to a machine."""
    result = run(folder, "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_an_empty_folder_becomes_a_project_with_an_agent_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "my shop!"
    result = run(folder)
    assert result.exit_code == 0, result.output
    found = contents(folder)
    assert set(found) == {
        "supabase/config.toml", "agents/greeter.py", *(f"supabase/migrations/{name}" for name in OURS),
    }  # fmt: skip
    assert 'project_id = "my-shop"' in found["supabase/config.toml"]
    [agent] = discover([folder / "agents"])
    assert [handler.name for handler in agent.handlers] == ["greeter.greet"]
    assert "supabase db push" in result.stderr
    assert "runtime dev agents" in result.stderr
    # A line for each of the migrations would hide the rest.
    assert len(result.stdout.splitlines()) == 3


def test_the_support_desk_passes_its_own_tests(tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    result = run(folder, "--template", "support-desk")
    assert result.exit_code == 0, result.output
    written = set(contents(folder))
    assert {"README.md", ".gitignore", "agents/triage.py", "desk/model.py", "tests/test_desk.py"} <= written
    commands = [line.split("    #")[0].strip() for line in result.stderr.splitlines()]
    assert commands[commands.index("Next:") + 1 :][:2] == [f"cd {folder}", "pytest"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder, env=clean, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "3 passed" in tested.stdout


def test_a_template_leaves_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    found = report(tmp_path, "--template", "support-desk")
    assert found["edited"] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"
    # Agents are there now: what is left to say is nothing.
    assert report(tmp_path)["written"] == []


def test_a_second_run_changes_nothing_and_says_so(tmp_path: Path) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    again = report(tmp_path)
    assert (again["written"], again["edited"]) == ([], [])
    assert len(again["unchanged"]) == len(OURS)
    assert contents(tmp_path) == before
    assert f"{len(OURS)} migrations" in run(tmp_path).stdout


def test_the_users_own_files_stay_as_they_are(tmp_path: Path) -> None:
    own = {
        "supabase/config.toml": 'project_id = "mine"\n',
        "supabase/migrations/20250101000000_create_orders.sql": "create table orders ();\n",
        "supabase/seed.sql": "select 1;\n",
        "agents/mine.py": "# mine\n",
    }
    for name, text in own.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = report(tmp_path)
    assert found["written"] == [f"supabase/migrations/{name}" for name in OURS]
    assert own.items() <= contents(tmp_path).items()
    assert not (tmp_path / "agents/greeter.py").exists()
    assert not any("--include-all" in line for line in found["next"])


def test_newer_migrations_come_later_beside_those_that_are_there(tmp_path: Path) -> None:
    run(tmp_path)
    newest = tmp_path / "supabase/migrations" / OURS[-1]
    text = newest.read_text()
    newest.unlink()
    found = report(tmp_path)
    assert found["written"] == [f"supabase/migrations/{OURS[-1]}"]
    assert newest.read_text() == text


def test_an_edited_migration_is_left_and_told(tmp_path: Path) -> None:
    run(tmp_path)
    edited = tmp_path / "supabase/migrations" / OURS[0]
    edited.write_text(edited.read_text() + "-- mine\n")
    (tmp_path / "agents/greeter.py").write_text("# mine now\n")
    before = contents(tmp_path)
    assert report(tmp_path)["edited"] == [f"supabase/migrations/{OURS[0]}"]
    result = run(tmp_path)
    assert result.exit_code == 0
    assert OURS[0] in result.stdout
    assert "Somebody edited" in result.stderr
    assert contents(tmp_path) == before


def test_line_ends_are_no_edit(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "supabase/migrations" / OURS[0]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert report(tmp_path)["edited"] == []


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path) -> None:
    dry = report(tmp_path, "--dry-run")
    assert contents(tmp_path) == {}
    assert "would be written" in run(tmp_path, "--dry-run").stdout
    assert contents(tmp_path) == {}
    assert report(tmp_path)["written"] == dry["written"]


def test_later_migrations_of_the_users_own_need_a_word_to_the_cli(tmp_path: Path) -> None:
    later = tmp_path / "supabase/migrations/29990101000000_create_orders.sql"
    later.parent.mkdir(parents=True)
    later.write_text("create table orders ();\n")
    assert any("db push --include-all" in line for line in report(tmp_path)["next"])
    # Nothing of ours is new any more, so nothing is out of order.
    assert not any("--include-all" in line for line in report(tmp_path)["next"])


def test_a_version_of_ours_that_the_user_has_taken_stops_everything(tmp_path: Path) -> None:
    taken = tmp_path / "supabase/migrations" / f"{OURS[3].partition('_')[0]}_create_orders.sql"
    taken.parent.mkdir(parents=True)
    taken.write_text("create table orders ();\n")
    result = run(tmp_path)
    assert result.exit_code == 1
    assert taken.name in result.stderr
    assert OURS[3] in result.stderr
    assert list(contents(tmp_path)) == [f"supabase/migrations/{taken.name}"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file")
    assert result.exit_code == 1
    assert "is no folder" in result.stderr


def test_a_folder_that_may_not_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "supabase").write_text("a file in the way")
    result = run(tmp_path)
    assert (result.exit_code, "cannot be written" in result.stderr) == (1, True)


@pytest.mark.anyio
async def test_what_was_written_makes_the_schema(tmp_path: Path, empty_database: str) -> None:
    await anyio.to_thread.run_sync(run, tmp_path)
    await apply_migrations(empty_database, read_migrations(tmp_path / "supabase/migrations"))
    connection = await asyncpg.connect(empty_database)
    try:
        assert await connection.fetchval("select to_regclass('public.consciousness_stream') is not null")
    finally:
        await connection.close()
