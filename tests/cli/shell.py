"""The command `runtime` as a shell runs it: a process of its own, its streams and its exit code."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.preforked import RUNTIME, Forked, Preforked

# What a developer's shell may hold and would mislead a test, or colour its output.
_LEFT_OUT = (
    "SUPABASE_",
    "RUNTIME_",
    "DATABASE_URL",
    "API_URL",
    "SERVICE_ROLE_KEY",
    "NEWSROOM_",
    "ANTHROPIC_",
)
_LEFT_OUT += ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TERM")
SECONDS = 240


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Shell:
    """A working directory and an environment to run commands in.

    Attributes:
        folder: the working directory; a `.env` in it is read.
        environment: on top of the tests' own, which names no stream.
        command: what starts `runtime`.
        preforked: starts commands in less time; None to start each by itself.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = (sys.executable, "-m", "runtime")
    preforked: Preforked | None = None
    _started: list[subprocess.Popen[str] | Forked] = field(default_factory=list)

    def run(self, *arguments: str, given: str = "", **environment: str) -> Ended:
        """Run `runtime` with these arguments until it ends."""
        whole = self._environment(environment)
        if preforked := self._preforked_for(whole):
            ended = preforked.run(arguments, self.folder, whole, given, SECONDS)
        else:
            ended = subprocess.run(
                [*self.command, *arguments],
                cwd=self.folder, env=whole, input=given,
                capture_output=True, text=True, timeout=SECONDS, check=False,
            )  # fmt: skip
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def start(
        self,
        *arguments: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        **environment: str,
    ) -> subprocess.Popen[str] | Forked:
        """Start `runtime` with these arguments and leave it running; its streams are pipes."""
        whole = self._environment(environment)
        process: subprocess.Popen[str] | Forked
        if preforked := self._preforked_for(whole):
            command = [RUNTIME, *arguments]
            process = preforked.start(command, self.folder, whole, stdin=stdin, stdout=stdout)
        else:
            process = subprocess.Popen(
                [*self.command, *arguments],
                cwd=self.folder, env=whole, stdin=stdin,
                stdout=stdout, stderr=subprocess.PIPE, text=True, bufsize=1,
            )  # fmt: skip
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what still runs: a test that fails leaves nothing behind."""
        for process in self._started:
            process.kill()
            process.wait(SECONDS)

    def _preforked_for(self, environment: Mapping[str, str]) -> Preforked | None:
        is_fit = self.preforked is not None and self.preforked.is_fit_for(environment)
        return self.preforked if is_fit and self.command == Shell.command else None

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_LEFT_OUT)}
        # No stack of the developer's own is found.
        nowhere = {"RUNTIME_LOCAL_DIR": str(self.folder / "no-stack-here")}
        return {**kept, **nowhere, **self.environment, **more}


def error_line(ended: Ended) -> str:
    """The one line in which a command said what was wrong: with exit code 1, no traceback, nothing on stdout."""
    assert (ended.code, ended.stdout) == (1, ""), ended
    (line,) = ended.stderr.splitlines()
    if line.startswith("{"):
        # A command whose log goes into this pipe as JSON lines writes its error as one of them.
        return f"Error: {json.loads(line)['error']}"
    assert line.startswith("Error: ")
    return line


def usage_error(ended: Ended) -> str:
    """What a command said of a command line that makes no sense: with exit code 2, no traceback."""
    assert (ended.code, ended.stdout) == (2, ""), ended
    assert "Traceback" not in ended.stderr
    return " ".join(ended.stderr.replace("│", " ").split())
