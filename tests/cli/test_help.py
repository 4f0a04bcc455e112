"""What the command line says of itself: quickly, at any width, and to a shell that completes."""

import subprocess
import sys

import pytest

from runtime.cli import COMMANDS
from tests.cli.shell import Shell, usage_error

HEAVY = {
    "supabase",
    "realtime",
    "websockets",
    "asyncpg",
    "starlette",
    "uvicorn",
    "httpx",
    "pydantic",
    "psutil",
}


def test_help_lists_every_command_with_a_line_about_it(nowhere: Shell) -> None:
    ended = nowhere.run("--help")
    assert (ended.code, ended.stderr) == (0, "")
    for name, text in COMMANDS.items():
        assert any(f" {name} " in line and text[:40] in line for line in ended.stdout.splitlines()), name
    assert nowhere.run("-h").stdout == ended.stdout
    assert "runtime [OPTIONS]" in nowhere.run().stdout + nowhere.run().stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_a_command_line_that_calls_no_command_loads_none(arguments: list[str]) -> None:
    script = f"""
import sys
from runtime.cli import app
try:
    app({arguments!r}, prog_name="runtime")
except SystemExit:
    loaded = {HEAVY!r} & set(sys.modules) | {{name for name in sys.modules if name.startswith("runtime.cli.")}}
    print(loaded - {{"runtime.cli.errors", "runtime.cli.streams"}}, file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stderr.splitlines()[-1] == "set()"


def test_a_command_loads_no_other_and_no_stack_where_the_environment_names_a_stream() -> None:
    script = """
import os, sys
from runtime.cli import app
os.environ |= {"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SERVICE_ROLE_KEY": "x"}
try:
    app(["read", "a"], prog_name="runtime")
except SystemExit:
    print("runtime.cli.read" in sys.modules, "runtime.cli.send" in sys.modules, "runtime.local" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False", "False"]


@pytest.mark.parametrize("command", [*COMMANDS, "local start", "local stop", "local status", "local reset"])
def test_each_command_explains_itself(nowhere: Shell, command: str) -> None:
    ended = nowhere.run(*command.split(), "--help")
    assert (ended.code, ended.stderr) == (0, "")
    assert f"Usage: runtime {command}" in " ".join(ended.stdout.split())
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_help_fits_the_terminal(nowhere: Shell, columns: int) -> None:
    lines = nowhere.run("send", "--help", COLUMNS=str(columns)).stdout.splitlines()
    assert max(map(len, lines)) <= columns


def test_the_version_is_the_package_s(nowhere: Shell) -> None:
    from importlib.metadata import version

    assert nowhere.run("--version").stdout == f"agent-runtime {version('agent-runtime')}\n"


def test_a_command_that_is_none_is_a_matter_of_usage_with_a_guess(nowhere: Shell) -> None:
    assert "No such command 'stats'. Did you mean 'status'?" in usage_error(nowhere.run("stats"))
    assert "No such command" in usage_error(nowhere.run("local", "begin"))
    assert "No such option: --colour" in usage_error(nowhere.run("status", "--colour"))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("runtime dem", {"demo"}),
        ("runtime local st", {"start", "stop", "status"}),
        ("runtime send --dedup", {"--dedup-key"}),
        ("runtime send a --priority ", {"low", "normal", "high"}),
    ],
)
def test_a_shell_completes_commands_options_and_values(nowhere: Shell, typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    answer = nowhere.run(_RUNTIME_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    assert set(answer.stdout.split()) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_installed(nowhere: Shell, shell: str) -> None:
    home = {"HOME": str(nowhere.folder)}
    shown = nowhere.run("--show-completion", shell, **home)
    assert shown.code == 0
    assert "_RUNTIME_COMPLETE" in shown.stdout
    assert not list(nowhere.folder.iterdir())
    installed = nowhere.run("--install-completion", shell, **home)
    assert installed.code == 0, installed.stderr
    assert any(
        "_RUNTIME_COMPLETE" in file.read_text() for file in nowhere.folder.rglob("*") if file.is_file()
    )
