"""What the command line says of itself: quickly, at any width, and to a shell that completes."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from runtime.cli import COMMANDS, app, load
from runtime.cli.help import paragraphs
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
    titles = [line for line in ended.stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options:", "Set up:", "Work with agents:", "Write and read:", "Look:", "Mend:"]
    assert nowhere.run("-h").stdout == ended.stdout
    assert "Usage: runtime [OPTIONS] COMMAND" in nowhere.run().stdout + nowhere.run().stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_a_command_line_that_calls_no_command_loads_none(arguments: list[str]) -> None:
    script = f"""
import sys
from runtime.cli import app
try:
    app({arguments!r}, prog_name="runtime")
except SystemExit:
    loaded = {HEAVY!r} & set(sys.modules) | {{name for name in sys.modules if name.startswith("runtime.cli.")}}
    print(loaded - {{f"runtime.cli.{{name}}" for name in ("app", "errors", "help", "streams")}}, file=sys.stderr)
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


@pytest.mark.parametrize("command", ["send", "local start"])
def test_a_command_explains_itself(nowhere: Shell, command: str) -> None:
    ended = nowhere.run(*command.split(), "--help")
    assert (ended.code, ended.stderr) == (0, "")
    assert f"Usage: runtime {command} [OPTIONS]" in " ".join(ended.stdout.split())
    assert "-h, --help" in ended.stdout
    assert "\x1b" not in ended.stdout


def every_command() -> Iterator[tuple[Any, Any]]:
    """Each command and group with a context to print its help in."""
    open_ones: list[tuple[str, Any]] = [("runtime", typer.main.get_command(app))]
    open_ones += [(f"runtime {name}", load(name)) for name in COMMANDS]
    while open_ones:
        path, command = open_ones.pop()
        yield command, command.make_context(path, [], resilient_parsing=True)
        if path != "runtime":
            open_ones += [(f"{path} {name}", each) for name, each in getattr(command, "commands", {}).items()]


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_all_help_is_of_one_form_and_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command, context in every_command():
        text = command.get_help(context)
        assert text.startswith("Usage: runtime"), text
        assert max(map(len, text.splitlines())) <= columns, text
        # No boxes, no types of Python, no default in two pairs of brackets.
        assert re.search(r"[│╭<]|\[default|\(\(|…\w", text) is None, text
        named = {name for each in command.get_params(context) for name in each.opts if not each.hidden}
        assert all(name in text for name in named if name.startswith("-")), text
        # Lines of a docstring end at the edge of the terminal, not where they end in the code.
        assert all(" ".join(each.split()) in " ".join(text.split()) for each in paragraphs(command.help))


def test_every_command_has_json() -> None:
    for command, context in every_command():
        is_plain_group = hasattr(command, "commands") and not command.invoke_without_command
        assert (
            is_plain_group
            or context.command_path == "runtime"
            or any("--json" in each.opts for each in command.params)
        ), context.command_path


def test_an_error_is_one_json_object_where_json_is_asked_for(nowhere: Shell) -> None:
    for arguments, code, kind in (
        (["read", "--json"], 1, "SettingsError"),
        (["read", "--jsonn", "--json"], 2, "UsageError"),
        (["dead", "list", "--limit", "many", "--json"], 2, "UsageError"),
        (["dead", "show", "1", "--json"], 1, "SettingsError"),
    ):
        ended = nowhere.run(*arguments)
        assert (ended.code, ended.stdout) == (code, ""), ended
        error = json.loads(ended.stderr)
        assert (error["type"], error["exit_code"]) == (kind, code)
        assert error["error"]


def test_the_version_is_the_package_s(nowhere: Shell) -> None:
    from importlib.metadata import version

    assert nowhere.run("--version").stdout == f"agent-runtime {version('agent-runtime')}\n"


def test_a_command_that_is_none_is_a_matter_of_usage_with_a_guess(nowhere: Shell) -> None:
    assert "No such command 'stats'. Did you mean 'status'" in usage_error(nowhere.run("stats"))
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
