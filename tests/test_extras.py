"""A worker without the extras: what it needs is required, and what lacks an extra says which one."""

import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from runtime.local.stack import LocalStack
from tests.cli.shell import Ended, Shell, error_line

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# In a sitecustomize.py: to this Python the modules below are not installed.
HIDING = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, *arguments)

    def __getattr__(self, name):
        return getattr(self.finder, name)

HIDDEN = {hidden!r}
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
NEEDED = {
    "dashboard": "dashboard",
    "demo": "demo",
    "dev": "local,dashboard",
    "local": "local",
    "mcp": "mcp",
    "serve": "serve",
}
AGENT = """
from runtime import Agent

agent = Agent("echo")

@agent.on("task.output", emits="echo.done")
async def echo(value: str) -> str:
    return value
"""


def _name(distribution: str) -> str:
    return re.sub("[-_.]+", "-", distribution).lower()


def closure(*requirements: str) -> set[str]:
    """The distributions that these requirements bring, whatever brings them."""
    found: set[str] = set()
    left = [Requirement(each) for each in requirements]
    seen: set[str] = set()
    while left:
        one = left.pop()
        if str(one) in seen or (one.marker is not None and not one.marker.evaluate({"extra": ""})):
            continue
        seen.add(str(one))
        found.add(_name(one.name))
        try:
            theirs = [Requirement(each) for each in requires(one.name) or []]
        except PackageNotFoundError:
            continue
        for each in theirs:
            if each.marker is None or any(
                each.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)
            ):
                each.marker = None
                left.append(each)
    return found


@cache
def hidden() -> set[str]:
    """The modules of the tests' environment that come with an extra alone; pytest's stay, which runs users' tests."""
    core = closure(*PROJECT["dependencies"], "pytest") | {"agent-runtime"}
    return {
        module
        for module, distributions in packages_distributions().items()
        if not core & set(map(_name, distributions))
    }


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Shell]:
    """A shell with an environment into which no extra was installed."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDING.replace("{hidden!r}", repr(hidden())))
    (tmp_path / "echo.py").write_text(AGENT)
    with closing(Shell(tmp_path, {"PYTHONPATH": str(site)})) as shell:
        yield shell


def python(shell: Shell, script: str) -> Ended:
    """Run a script in that environment."""
    return Shell(shell.folder, shell.environment, (sys.executable, "-c")).run(script)


def cure(extra: str) -> str:
    return f'which is not installed: pip install "agent-runtime[{extra}]".'


def test_the_libraries_of_the_extras_are_hidden_and_those_of_the_core_are_not() -> None:
    assert {
        "starlette",
        "uvicorn",
        "prometheus_client",
        "psutil",
        "jinja2",
        "jsonschema",
        "pyphen",
    } <= hidden()
    assert not {"anyio", "asyncpg", "httpx", "pydantic", "supabase", "typer", "websockets"} & hidden()


def test_a_worker_needs_few_packages_beside_those_of_supabase() -> None:
    assert len(PROJECT["dependencies"]) <= 16
    assert len(closure(*PROJECT["dependencies"]) - closure("supabase")) <= 15


def test_all_is_every_extra_of_users_and_dev_holds_it() -> None:
    extras = PROJECT["optional-dependencies"]
    (every,) = (Requirement(each) for each in extras["all"])
    assert every.extras == set(extras) - {"all", "bench", "dev", "docs"}
    assert any("all" in Requirement(each).extras for each in extras["dev"])


def test_every_export_and_module_of_a_worker_is_there_without_any(bare: Shell) -> None:
    ended = python(
        bare,
        "import runtime, runtime.errors, runtime.settings, runtime.webhooks.sender, runtime.store.supabase\n"
        "import runtime.store.postgres, runtime.wakeups.realtime, runtime.wakeups.notify\n"
        "print(len([getattr(runtime, name) for name in runtime.__all__]))",
    )
    assert ended.code == 0, ended.stderr


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("runtime.adapters.pydantic_ai", "pydantic-ai"),
        ("runtime.asgi", "serve"),
        ("runtime.testing", "local"),
    ],
)
def test_a_module_says_which_extra_it_needs(bare: Shell, module: str, extra: str) -> None:
    ended = python(bare, f"import {module}")
    assert ended.code == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"runtime.errors.SettingsError: {module} needs ")
    assert last.endswith(cure(extra))


def test_a_command_is_there_without_any_or_says_which_extra_it_needs(bare: Shell) -> None:
    ended = python(
        bare,
        "from runtime.cli import COMMANDS, load\n"
        "for name in COMMANDS:\n"
        "    try:\n"
        "        load(name)\n"
        "    except Exception as error:\n"
        "        print(name, error)\n",
    )
    assert ended.code == 0, ended.stderr
    told = dict(line.split(" ", 1) for line in ended.stdout.splitlines())
    assert told.keys() == NEEDED.keys()
    for command, text in told.items():
        assert text.startswith(f"runtime {command} needs ")
        assert text.endswith(cure(NEEDED[command]))


def test_a_command_without_its_extra_ends_as_with_any_setting_that_is_wrong(bare: Shell) -> None:
    assert error_line(bare.run("local", "start")).endswith(cure("local"))
    ended = bare.run("--help")
    assert (ended.code, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("variable", "value", "extra", "options"),
    [
        ("RUNTIME_METRICS_PORT", "0", "serve", []),
        ("RUNTIME_METRICS_PORT", "0", "serve", ["--processes", "2"]),
        ("RUNTIME_WEBHOOK", "127.0.0.1:0", "serve", []),
        ("RUNTIME_TELEMETRY", "true", "otel", []),
    ],
)
def test_a_setting_says_which_extra_it_needs(
    bare: Shell, variable: str, value: str, extra: str, options: list[str]
) -> None:
    place = {
        "DATABASE_URL": "postgresql://postgres:postgres@127.0.0.1:1/postgres",
        "RUNTIME_LOG_LEVEL": "error",
    }
    line = error_line(bare.run("run", "echo.py", *options, **place, **{variable: value}))
    assert line.startswith(f"Error: {variable} needs ")
    assert line.endswith(cure(extra))


def test_a_test_that_asks_for_the_harness_is_told_in_one_line(bare: Shell) -> None:
    (bare.folder / "test_it.py").write_text("def test_it(harness): pass\n")
    pytest_alone = Shell(bare.folder, bare.environment, (sys.executable, "-m", "pytest"))
    ended = pytest_alone.run("-p", "runtime.pytest_plugin", "test_it.py", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert ended.code == 1
    assert f"The harness needs psutil, {cure('local')}" in ended.stdout
    assert "Traceback" not in ended.stdout
    assert "1 error" in ended.stdout


def test_a_worker_and_commands_work_on_a_stack_that_another_environment_runs(bare: Shell) -> None:
    with LocalStack.temporary() as stack:
        stack.start()
        place = {"RUNTIME_LOCAL_DIR": str(stack.folder)}
        worker = bare.start("run", "echo.py", RUNTIME_LOG_FORMAT="lines", stdout=subprocess.DEVNULL, **place)
        assert worker.stderr is not None
        assert any("live: woken by" in line for line in worker.stderr)
        tail = bare.start("tail", "echo.done", **place)
        assert bare.run("send", "task.output", '"hello"', **place).stdout == "#1 task.output\n"
        assert tail.stdout is not None
        assert '"hello"' in tail.stdout.readline()
        assert "echo.done" in bare.run("read", ">", **place).stdout
        assert "echo.echo" in bare.run("status", **place).stdout
        examined = bare.run("doctor", **place)
        assert examined.code == 0, examined.stdout
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        stack.stop()
        assert "runtime local start" in error_line(bare.run("read", ">", **place))
