"""`runtime dev`: does a reload lose nothing, a broken file stop nothing, and Ctrl-C leave nothing?"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import psutil
import pytest

from runtime import connect
from runtime.cli.reload import watched
from runtime.local.stack import LocalStack
from runtime.message import Draft
from runtime.settings import Settings
from tests.cli.shell import Shell
from tests.integration.conftest import settings_of

SECONDS = 180

AGENT = """
import time
from runtime import Agent

agent = Agent("dev")


@agent.on("dev.task", concurrency=4)
def work(value: int) -> None:
    print(f"VERSION begins {value}\\n", end="", flush=True)
    time.sleep(SLEEP)
    print(f"VERSION handled {value}\\n", end="", flush=True)
"""


class Terminal:
    """A command in a terminal of its own, with everything it prints; Ctrl-C reaches its whole process group."""

    def __init__(self, shell: Shell, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtime", *arguments], cwd=shell.folder,
            env=shell._environment({"PYTHONUNBUFFERED": "1", **environment}), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None or condition(), self.text
            time.sleep(0.02)

    def shows(self, text: str, *, times: int = 1) -> None:
        """Wait until it was printed so often."""
        self.until(lambda: self.text.count(text) >= times)

    def press_ctrl_c(self) -> int:
        """Ctrl-C, and the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Terminals of a test; what still runs in them at its end is killed."""
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        if terminal.process.poll() is None:
            for process in [*psutil.Process(terminal.process.pid).children(recursive=True), terminal.process]:
                process.kill()


def write(folder: Path, *, version: str, seconds: float = 0.0) -> None:
    """The agent's file."""
    folder.mkdir(exist_ok=True)
    (folder / "task.py").write_text(AGENT.replace("VERSION", version).replace("SLEEP", str(seconds)))


def send(settings: Settings, *values: int) -> None:
    async def send_all() -> None:
        async with connect(settings) as stream:
            await stream.send_all([Draft("dev.task", value) for value in values])

    anyio.run(send_all)


def fetch(url: str, query: str) -> list[Any]:
    async def ask() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    return anyio.run(ask)


def runs(process: psutil.Process) -> bool:
    """Whether it is more than an entry that nobody has asked for yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def are_settled(url: str) -> bool:
    return bool(fetch(url, "select from runtime.subscriptions where settled"))


def test_g9_a_reload_drains_and_loses_nothing(shell: Shell, stack: Any, terminals: list[Terminal]) -> None:
    agents = shell.folder / "agents"
    write(agents, version="first", seconds=0.3)
    terminal = Terminal(shell, "dev")
    terminals.append(terminal)
    terminal.until(lambda: are_settled(stack.admin_url))
    send(settings_of(stack), *range(40))
    # Messages are shown as they flow, also those that wait.
    terminal.shows("dev.task", times=40)
    terminal.shows("first handled", times=4)
    write(agents, version="second")
    terminal.shows("changed: task.py")
    terminal.until(lambda: terminal.text.count("works for 1 subscription ") == 2)
    # A busy machine may have let the old process handle everything before it was replaced.
    send(settings_of(stack), 40)
    terminal.shows("second handled")
    terminal.until(lambda: terminal.text.count(" handled ") >= 41)
    terminal.until(lambda: not fetch(stack.admin_url, "select from runtime.deliveries"))
    assert terminal.press_ctrl_c() == 0
    # Only `dev` says that it ends: a reload is no signal of the reader's.
    assert "no new work is taken" not in terminal.text
    assert terminal.text.count("nce more to ") == 1
    # Nor does each reload say anew where the stream is.
    assert terminal.text.count(f"the stream is {stack.api_url} (SUPABASE_URL ") == 1
    runs = fetch(stack.admin_url, "select message_id, outcome from runtime.runs")
    # A reader sees a message before what became of it, whichever process was faster.
    places: dict[tuple[str, bool], int] = {}
    for place, line in enumerate(terminal.lines):
        if found := re.search(r"#(\d+) +dev\.task +(dev\.work +done)?", line):
            places.setdefault((found[1], bool(found[2])), place)
    assert len(places) == 82, terminal.text
    assert all(places[number, False] < place for (number, is_end), place in places.items() if is_end)
    # Nothing twice, nothing cut off, nothing left.
    assert sorted(row["outcome"] for row in runs) == ["done"] * 41
    assert len({row["message_id"] for row in runs}) == 41
    assert sorted(map(int, re.findall(r"handled (\d+)", terminal.text))) == list(range(41))
    assert fetch(stack.admin_url, "select from runtime.workers") == []


def test_a_broken_file_is_told_and_the_agents_go_on(
    shell: Shell, stack: Any, terminals: list[Terminal]
) -> None:
    agents = shell.folder / "agents"
    write(agents, version="first")
    terminal = Terminal(shell, "dev")
    terminals.append(terminal)
    terminal.until(lambda: are_settled(stack.admin_url))
    (agents / "task.py").write_text("def broken(:\n")
    terminal.shows("SyntaxError")
    terminal.shows("waiting for the next change")
    send(settings_of(stack), 1)
    terminal.shows("first handled 1")
    write(agents, version="second")
    terminal.until(lambda: terminal.text.count("works for 1 subscription ") == 2)
    send(settings_of(stack), 2)
    terminal.shows("second handled 2")
    assert "Traceback" not in terminal.text
    assert terminal.press_ctrl_c() == 0
    # What was written before this terminal listened is shown too, before what became of it.
    send(settings_of(stack), 3)
    later = Terminal(shell, "dev")
    terminals.append(later)
    later.until(lambda: re.search(r"#3 +dev\.task +dev\.work +done", later.text) is not None)
    told = [line for line in later.lines if re.search(r"#3 +dev\.task", line)]
    assert ["done" in line for line in told] == [False, True]
    assert later.press_ctrl_c() == 0


def test_a_file_that_is_broken_from_the_beginning_is_waited_for(
    shell: Shell, stack: Any, terminals: list[Terminal]
) -> None:
    agents = shell.folder / "agents"
    agents.mkdir()
    (agents / "task.py").write_text("import nothing_of_this_name\n")
    terminal = Terminal(shell, "dev")
    terminals.append(terminal)
    terminal.shows("nothing_of_this_name")
    terminal.shows("waiting for the next change")
    write(agents, version="first")
    terminal.until(lambda: are_settled(stack.admin_url))
    send(settings_of(stack), 1)
    terminal.shows("first handled 1")
    assert terminal.press_ctrl_c() == 0


def test_agents_that_end_by_themselves_start_again_with_the_next_change(
    shell: Shell, stack: Any, terminals: list[Terminal]
) -> None:
    agents = shell.folder / "agents"
    write(agents, version="first")
    terminal = Terminal(shell, "dev")
    terminals.append(terminal)
    terminal.until(lambda: are_settled(stack.admin_url))
    [worker] = psutil.Process(terminal.process.pid).children()
    worker.kill()
    terminal.shows("the agents' process was killed by SIGKILL")
    write(agents, version="second")
    terminal.until(lambda: terminal.text.count("works for 1 subscription ") == 2)
    send(settings_of(stack), 1)
    terminal.shows("second handled 1")
    assert terminal.press_ctrl_c() == 0


@pytest.mark.timeout(180)
def test_ctrl_c_leaves_no_process_and_the_stack_it_started_keeps_its_data(
    nowhere: Shell, terminals: list[Terminal]
) -> None:
    write(nowhere.folder / "agents", version="first", seconds=1)
    with LocalStack.temporary() as stack:
        # Ports of its own, which the folder remembers.
        stack.start()
        stack.stop()
        terminal = Terminal(nowhere, "dev", RUNTIME_LOCAL_DIR=str(stack.folder))
        terminals.append(terminal)
        terminal.shows("works for 1 subscription ")
        children = psutil.Process(terminal.process.pid).children(recursive=True)
        children += [psutil.Process(pid) for pid in stack.pids().values()]
        assert len(stack.pids()) == 2
        terminal.until(lambda: are_settled(stack.admin_url))
        send(settings_of(stack), 1)
        terminal.shows("first begins 1")
        assert terminal.press_ctrl_c() == 0
        assert "first handled 1" in terminal.text
        assert not [process for process in children if runs(process)]
        stack.start(gateway=False)
        assert len(fetch(stack.admin_url, "select from public.consciousness_stream")) == 1


def test_without_agents_the_cure_is_told(nowhere: Shell) -> None:
    ended = nowhere.run("dev")
    assert (ended.code, ended.stdout) == (1, "")
    assert "runtime init" in ended.stderr


def test_what_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/one.py").write_text("")
    agents, here = tmp_path / "agents", tmp_path
    assert watched(["agents"]) == [agents]
    assert watched(["agents/one.py", "agents"]) == [agents]
    assert watched(["agents/one.py:agent"]) == [agents]
    assert watched(["shop.agents", "shop.agents:writer"]) == [here]
