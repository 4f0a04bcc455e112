"""Do commands that show something end quietly, and those that work go on, when nobody reads their output?"""

import json
import signal
from contextlib import suppress

import httpx
import pytest

from runtime.local.ports import free_port
from tests.cli.shell import SECONDS, Shell
from tests.cli.test_run import wait_for

pytestmark = pytest.mark.timeout(300)

AGENTS = """
from runtime import Agent, Context
agent = Agent("odd")

@agent.on("odd.speaks")
async def speaks(value: object, context: Context) -> None:
    print("a line of the handler's own", flush=True)
    context.emit("odd.done", value)
"""


@pytest.mark.parametrize(
    "options", [(), ("--json",), ("--processes", "2")], ids=["lines", "json", "processes"]
)
def test_h5_a_worker_goes_on_when_nobody_reads_its_lines(shell: Shell, options: tuple[str, ...]) -> None:
    (shell.folder / "odd.py").write_text(AGENTS)
    process = shell.start("run", "odd.py", *options, PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    assert process.stderr is not None
    wait_for(process.stderr, "live")
    process.stdout.close()
    process.stderr.close()
    for number in range(3):
        shell.run("send", "odd.speaks", str(number))
    found: set[int] = set()
    while found < {0, 1, 2}:
        assert process.poll() is None
        read = shell.run("read", "odd.done", "--json").stdout
        found = {json.loads(line)["value"] for line in read.splitlines()}
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_h5_the_dashboard_goes_on_when_nobody_reads_its_lines(shell: Shell, number: signal.Signals) -> None:
    port = free_port()
    process = shell.start("dashboard", "--no-open", "--port", str(port))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    while True:
        assert process.poll() is None
        with suppress(httpx.TransportError):
            assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
            break
    process.send_signal(number)
    assert process.wait(SECONDS) == 0


@pytest.mark.parametrize(
    "command",
    [
        ("tail", "odd.>", "-n", "100"),
        ("tail", "odd.>", "-n", "100", "--json"),
        ("read", "odd.>", "-n", "1000"),
        ("read", "odd.>", "--json"),
        ("status",),
        ("subscriptions",),
        ("trace", "1"),
        ("--help",),
        ("--version",),
        ("run", "--help"),
    ],
    ids=" ".join,
)
def test_h5_a_command_whose_reader_leaves_ends_quietly(shell: Shell, command: tuple[str, ...]) -> None:
    for _ in range(2):
        shell.run("send", "odd.nobody", '"x"')
    process = shell.start(*command)
    assert process.stdout is not None
    # Nobody reads even the first line.
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(SECONDS) == 0, said
    assert "Traceback" not in said
    assert "Exception" not in said
    assert "BrokenPipe" not in said


def test_h5_a_command_that_waits_ends_when_its_reader_leaves(shell: Shell) -> None:
    """`runtime tail | head -1` ends with the first line, though nothing more is written."""
    shell.run("send", "odd.nobody", '"x"')
    process = shell.start("tail", "odd.>", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    assert process.stderr is not None
    assert "odd.nobody" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(SECONDS) == 0
