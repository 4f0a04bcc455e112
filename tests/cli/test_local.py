"""`runtime local`, as a shell sees it: exit codes, what is printed where."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from runtime.cli.local import app
from runtime.local import keys
from runtime.local.ports import free_port
from runtime.local.stack import LocalStack
from tests.cli.shell import Shell, error_line


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    """A stack whose folder the commands are told by the environment."""
    with LocalStack.temporary() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME_LOCAL_DIR", str(stack.folder))
        yield stack


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_day_with_the_stack(stack: LocalStack) -> None:
    assert stack.folder.exists()
    nothing = run("status")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "runtime local start" in nothing.stderr
    assert run("stop").exit_code == 0

    started = run("start", "--port", "0", "--db-port", "0", "--json")
    assert started.exit_code == 0, started.stderr
    values = json.loads(started.stdout)
    assert values["started"] is True
    assert values["running"] == {"database": True, "gateway": True}

    again = run("start")
    assert again.exit_code == 0
    assert "runs already" in again.stderr
    assert values["API_URL"] in again.stdout

    printed = run("status", "-o", "env")
    assert printed.exit_code == 0
    lines = dict(line.split("=", 1) for line in printed.stdout.splitlines())
    assert lines["SERVICE_ROLE_KEY"] == f'"{keys.SERVICE_ROLE_KEY}"'
    assert lines["API_URL"] == f'"{values["API_URL"]}"'
    assert set(lines) == {
        "API_URL", "REST_URL", "DB_URL", "JWT_SECRET", "ANON_KEY", "SERVICE_ROLE_KEY", "PUBLISHABLE_KEY", "SECRET_KEY",
        "JWKS_URL",
    }  # fmt: skip
    assert json.loads(run("status", "--json").stdout)["DB_URL"] == values["DB_URL"]
    assert json.loads(run("status", "-o", "json").stdout)["DB_URL"] == values["DB_URL"]

    refused = run("start", "--port", "1")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: ")
    assert "--port" in refused.stderr

    assert run("reset").exit_code == 0
    assert run("status").exit_code == 0

    stopped = run("stop", "--json")
    assert (stopped.exit_code, json.loads(stopped.stdout)) == (0, {"stopped": True})
    assert run("status").exit_code == 1

    beside = stack.folder / "notes.txt"
    beside.write_text("not the stack's")
    asked = run("remove")
    assert asked.exit_code == 2
    assert "--yes" in asked.stderr
    removed = run("remove", "--yes", "--json")
    assert (removed.exit_code, json.loads(removed.stdout)) == (0, {"removed": True})
    assert list(stack.folder.iterdir()) == [beside]
    again = run("remove")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "There is no local stack here.\n")


def test_commands_and_scripts_use_the_stack_of_the_folder_they_are_called_in(
    stack: LocalStack, nowhere: Shell
) -> None:
    stack.start()
    folder, data = nowhere.folder, nowhere.folder / "data"
    (folder / "shop/supabase").mkdir(parents=True)
    (folder / "shop/supabase/config.toml").write_text('project_id = "shop"')
    (folder / "shop/agents").mkdir()
    (folder / "other").mkdir()
    (data / "agent-runtime/stacks").mkdir(parents=True)
    (data / "agent-runtime/stacks/shop").symlink_to(stack.folder)
    place = {"RUNTIME_LOCAL_DIR": "", "XDG_DATA_HOME": str(data), "LOCALAPPDATA": str(data)}
    within = Shell(folder / "shop/agents", place)
    assert within.run("send", "a.b", "1").stdout == "#1 a.b\n"
    script = (
        "import anyio, runtime\nasync def main():\n async with runtime.connect() as stream:\n"
        "  print((await stream.latest('a.b')).value)\nanyio.run(main)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=within.folder, env=within._environment({}), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "1\n"), ran.stderr
    (row,) = map(json.loads, within.run("local", "list", "--json").stdout.splitlines())
    assert (row["running"], row["API_URL"]) == (True, stack.api_url)
    elsewhere = error_line(Shell(folder / "other", place).run("read", "a.b"))
    assert f"A stack runs for {stack.folder}" in elsewhere
    # A file that outlived another stack.
    (folder / "shop/agents/.env").write_text(
        f"SUPABASE_URL=http://127.0.0.1:{free_port()}\nSUPABASE_SECRET_KEY=k\n"
    )
    stale = error_line(within.run("read", "a.b"))
    assert f"SUPABASE_URL of {folder / 'shop/agents/.env'} names" in stale
    assert "runtime local start" in stale
    assert "SUPABASE_URL of" in error_line(within.run("dev", "."))


def test_a_port_that_is_none_is_a_matter_of_usage() -> None:
    assert run("start", "--port", "70000").exit_code == 2
