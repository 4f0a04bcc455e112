"""`runtime run`: what it prints, and how it ends."""

import json
import signal
import time
from subprocess import Popen
from typing import Any

import anyio
import pytest

from runtime.local.bootstrap import connected
from tests.cli.shell import SECONDS, Shell, error_line, usage_error

AGENT = """
import anyio
from pathlib import Path
from runtime import Agent

agent = Agent("slow")

@agent.on("job", emits="job.done")
async def work(seconds: float) -> str:
    Path(f"began-{seconds:g}").touch()
    await anyio.sleep(seconds)
    return "done"
"""


@pytest.fixture
def agents(shell: Shell) -> Shell:
    """A folder with an agent that takes as long as its message says."""
    (shell.folder / "slow.py").write_text(AGENT)
    return shell


def wait_for(stream: object, text: str) -> str:
    """The first line with this text."""
    for line in stream:  # type: ignore[attr-defined]
        if text in line:
            return str(line)
    raise AssertionError(f"ended without {text!r}")


def begin(shell: Shell, seconds: str, *options: str) -> "Popen[str]":
    """A worker with one handler at work."""
    process = shell.start("run", "slow.py", *options, PYTHONUNBUFFERED="1", RUNTIME_LEASE_SECONDS="5")
    wait_for(process.stderr, "live")
    shell.run("send", "job", seconds)
    while not (shell.folder / f"began-{seconds}").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_it_says_what_it_runs_and_prints_a_line_per_attempt(agents: Shell) -> None:
    process = begin(agents, "0")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.split()[:4] == ["#1", "job", "slow.work", "done"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0


def test_g9_sigterm_lets_the_running_handler_finish_and_ends_with_0(agents: Shell) -> None:
    process = begin(agents, "2", "--json")
    process.send_signal(signal.SIGTERM)
    printed, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert [json.loads(line)["outcome"] for line in printed.splitlines()] == ["done"]
    assert json.loads(agents.run("read", "job.done", "--json").stdout)["value"] == "done"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_does_not_wait_and_the_work_is_given_back(
    agents: Shell, number: signal.Signals, code: int
) -> None:
    process = begin(agents, "600")
    process.send_signal(number)
    assert "Once more to quit at once" in wait_for(process.stderr, number.name)
    process.send_signal(number)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == code
    assert "Traceback" not in said
    (subscription,) = json.loads(agents.run("status", "--json").stdout)["subscriptions"]
    assert (subscription["waiting"] + subscription["scheduled"], subscription["running"]) == (1, 0)


async def execute(url: str, statement: str) -> None:
    """Run a statement as the role of this URL."""
    async with connected(url) as connection:
        await connection.execute(statement)


OF_VERSION = (
    "create or replace function public.stream_version() returns json language sql security definer "
    "set search_path = '' as $$ select json_build_object('version', {0}, 'serves', {1}, 'incarnation', 'x') $$"
)


@pytest.mark.parametrize("store", ["rest", "direct"])
@pytest.mark.parametrize(
    ("change", "said", "cure"),
    [
        pytest.param(
            "drop function public.stream_version()", "lacks the runtime's schema", "`runtime init`", id="missing"
        ),
        pytest.param(
            OF_VERSION.format(0, 0), "has version 0, and this release needs 1", "`runtime init`", id="older"
        ),
        pytest.param(
            OF_VERSION.format(9, 8), "serves workers of version 8 and later", "`pip install -U agent-runtime`",
            id="newer",
        ),
    ],
)  # fmt: skip
def test_a_schema_of_no_use_ends_it_with_the_command_that_mends_it(
    agents: Shell, stack: Any, change: str, said: str, cure: str, store: str
) -> None:
    anyio.run(execute, stack.db_url, change)
    way = {"DATABASE_URL": stack.db_url} if store == "direct" else {}
    ended = agents.run("run", "slow.py", **way)
    assert ended.code == 1, ended
    assert "Traceback" not in ended.stderr
    line = ended.stderr.splitlines()[-1]
    assert said in line
    assert cure in line


def test_paths_that_hold_no_agent_are_told_before_anything_starts(nowhere: Shell) -> None:
    (nowhere.folder / "empty.py").write_text("")
    (nowhere.folder / "broken.py").write_text("import not_there_at_all")
    assert "holds no agent" in error_line(nowhere.run("run", "empty.py"))
    assert "not_there_at_all" in error_line(nowhere.run("run", "broken.py"))
    assert "'gone.py' does not exist" in error_line(nowhere.run("run", "gone.py"))
    assert "Missing argument" in usage_error(nowhere.run("run"))


FAILING = """
from runtime import Agent, Context, Retry
agent = Agent("clumsy")

@agent.on("fall", retry=Retry(attempts=1))
async def fall(value: str, context: Context):
    context.log.warning("about to fall")
    raise ValueError("fell")
"""


def test_its_log_is_json_where_nobody_reads_it_and_names_the_attempt_but_no_value(shell: Shell) -> None:
    (shell.folder / "clumsy.py").write_text(FAILING)
    process = shell.start("run", "clumsy.py", "--quiet", PYTHONUNBUFFERED="1")
    wait_for(process.stderr, "live")
    shell.run("send", "fall", '"a secret"')
    said = [json.loads(wait_for(process.stderr, text)) for text in ("about to fall", "failed on message")]
    for record in said:
        assert record["level"] == "WARNING"
        named = {name: record[name] for name in ("agent", "handler", "key", "message_id", "attempt")}
        assert named == {
            "agent": "clumsy", "handler": "clumsy.fall", "key": "fall", "message_id": 1, "attempt": 1,
        }  # fmt: skip
        assert "secret" not in json.dumps(record)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)


def test_its_log_is_lines_where_the_environment_says_so(shell: Shell) -> None:
    (shell.folder / "clumsy.py").write_text(FAILING)
    process = shell.start("run", "clumsy.py", PYTHONUNBUFFERED="1", RUNTIME_LOG_FORMAT="lines")
    assert process.stderr is not None
    assert process.stderr.readline() == "clumsy.fall for fall\n"
    assert " info " in wait_for(process.stderr, "live")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)
