"""Shells in a folder of their own, as a reader of the documentation would have them open."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.local.ports import free_port
from runtime.local.stack import LocalStack
from runtime.local.state import StackState
from tests.preforked import RUNTIME, Forked, Preforked

SECONDS = 240
# What a shell has to read, outside quotes: variables, other streams, several commands, patterns of names.
_QUOTED = re.compile(r"""'[^']*'|"[^"$`\\]*\"""")
_NEEDS_SHELL = re.compile(r"[$`;&|<>()\\\n~*?]|^\w+=")


class Terminal:
    """Shells in one folder, with `runtime` in their path and a stack of their own; closing it ends what they left.

    Args:
        folder: where the commands are typed.
        preforked: starts `runtime` and programs in Python in less time; None to leave them to the shell.
    """

    def __init__(self, folder: Path, preforked: Preforked | None = None) -> None:
        self.folder = folder
        self._preforked = preforked
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
        scripts = Path(sys.executable).parent
        self._environment = {
            **kept, "PATH": f"{scripts}{os.pathsep}{kept['PATH']}", "RUNTIME_LOCAL_DIR": str(folder / "stack"),
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self._running: list[subprocess.Popen[str] | Forked] = []

    def run(self, command: str) -> str:
        """Run a command until it ends; what it printed."""
        process = self._begun(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == 0, f"{command}\n{out}\n{err}"
        return out

    def start(self, command: str) -> "Printed":
        """Start a command in a terminal of its own."""
        printed = Printed(self.folder / f"terminal-{len(self._running)}")
        with printed.file.open("w") as file:
            process = self._begun(f"exec {command}", stdout=file.fileno(), stderr=file.fileno())
        self._running.append(process)
        printed.process = process
        return printed

    def _begun(self, command: str, *, stdout: int, stderr: int) -> subprocess.Popen[str] | Forked:
        streams = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr}
        words = self._forkable(command.removeprefix("exec "))
        if self._preforked is not None and words:
            return self._preforked.start(words, self.folder, self._environment, **streams)
        return subprocess.Popen(
            ["/bin/sh", "-c", command], cwd=self.folder, env=self._environment, text=True, **streams
        )  # fmt: skip

    def _forkable(self, command: str) -> list[str]:
        """The words of a command without a shell, where it is `runtime` or a file in Python; else none."""
        if _NEEDS_SHELL.search(_QUOTED.sub("", command)):
            return []
        program, *arguments = shlex.split(command)
        if program == "python" and arguments and arguments[0].endswith(".py"):
            return arguments
        return [program, *arguments] if program == RUNTIME else []

    def close(self) -> None:
        """End what runs, and the stack, also where a command does not end when it is asked to."""
        try:
            self.interrupt()
        finally:
            for process in self._running:
                process.kill()
            LocalStack(self.folder / "stack").stop()

    def interrupt(self) -> None:
        """End what runs, as Ctrl-C in each terminal does."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait(SECONDS)


class Printed:
    """What a command in another terminal has printed so far."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.process: subprocess.Popen[str] | Forked | None = None

    def check(self) -> None:
        """Fail if it has ended otherwise than well."""
        assert self.process is not None
        # On a line of its own: within a line of the log it is a handler's.
        if "\nTraceback (most recent call last)" in f"\n{self.file.read_text()}":
            self.process.wait(SECONDS)
        assert not self.process.poll(), self.file.read_text()

    def wait_for_anything(self) -> None:
        """Return when it has printed something, or has ended; fail at the deadline."""
        deadline = time.monotonic() + SECONDS
        while not self.file.read_text() and self.process and self.process.poll() is None:
            assert time.monotonic() < deadline, "it prints nothing and does not end"
            time.sleep(0.02)

    def wait_for(self, text: str) -> str:
        """Return the first line with this text; fail at the deadline."""
        deadline = time.monotonic() + SECONDS
        while True:
            printed = self.file.read_text()
            for line in printed.splitlines():
                if text in line:
                    return line
            assert time.monotonic() < deadline, f"{text!r} is not in:\n{printed}"
            time.sleep(0.02)


@contextmanager
def prepared() -> Iterator[Path]:
    """The folder of a local stack that was started once and stopped: a copy of it starts in a third of the time."""
    with _open_to_everybody() as folder:
        stack = LocalStack(folder / "stack", api_port=0, db_port=0)
        stack.start(gateway=False)
        stack.stop()
        yield stack.folder


@contextmanager
def opened(stack: Path, preforked: Preforked | None = None) -> Iterator[Terminal]:
    """A terminal in a folder with a copy of this stack on free ports; a page's own commands take these."""
    with _open_to_everybody() as folder:
        copy = folder / "stack"
        # With the owners, one of whom is the account of PostgreSQL.
        subprocess.run(["cp", "-a", stack, copy], check=True)
        state = StackState.load(copy)
        moved = {"api_port": free_port(), "db_port": free_port(), "cluster": copy / "postgres"}
        state.model_copy(update=moved).save(copy)
        terminal = Terminal(folder, preforked)
        try:
            yield terminal
        finally:
            terminal.close()


@contextmanager
def _open_to_everybody() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="terminal-test-")).resolve()
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
