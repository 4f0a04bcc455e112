"""Commands as processes of their own, forked from one in which most modules are loaded.

Loading them is nine tenths of what a short command costs: the packages of others, and those of `runtime` itself that
read nothing of their environment as they are loaded. The command line loads its own, as ever; so is all the rest of a
command's life: its arguments, environment, streams, working directory, exit code.
"""

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TextIO

from tests.fork_server import ForkServer, fork_for_each_request

_MODULES = (
    "asyncpg", "anyio", "anyio._backends._asyncio", "anyio.streams.tls", "cronsim", "dotenv", "httpx", "jwt",
    "pydantic", "pydantic_settings", "rich.console", "rich.table", "supabase", "typer", "uvicorn", "uvloop",
    "websockets.asyncio.client",
    "runtime.client.queries", "runtime.client.requester", "runtime.store.postgres", "runtime.store.supabase",
    "runtime.worker.worker",
)  # fmt: skip
# Read by Python or a package as it is loaded.
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "FORCE_COLOR", "TERMINAL_WIDTH")
# A command is told after the fork whether its streams are buffered.
_BUFFERING = "PYTHONUNBUFFERED"
RUNTIME = "runtime"


class Forked:
    """A command that was forked, with what `subprocess.Popen` has of it.

    Args:
        status: where its process id is told, and its exit code.
        stdin: its standard input, and so on; None where it is not a pipe to here.
    """

    def __init__(self, status: int, stdin: int | None, stdout: int | None, stderr: int | None) -> None:
        self._status = open(status)  # noqa: SIM115
        self.pid = int(self._status.readline())
        self.returncode: int | None = None
        self.stdin: TextIO | None = None if stdin is None else open(stdin, "w", 1)  # noqa: SIM115
        self.stdout: TextIO | None = None if stdout is None else open(stdout)  # noqa: SIM115
        self.stderr: TextIO | None = None if stderr is None else open(stderr)  # noqa: SIM115

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended.

        Raises:
            subprocess.TimeoutExpired: that took longer.
        """
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def communicate(self, given: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Write to it, and read what it prints until it has ended; it is killed when that takes longer.

        Raises:
            subprocess.TimeoutExpired: it took longer.
        """
        with ThreadPoolExecutor(3) as pool:
            if self.stdin is not None:
                pool.submit(_write, self.stdin, given)
            out, err = (pool.submit(_read, stream) for stream in (self.stdout, self.stderr))
            try:
                self.wait(timeout)
            except BaseException:
                self.kill()
                raise
        return out.result(), err.result()

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def _wait(self, seconds: float | None) -> int | None:
        # At the end of what the pipe holds it can be read from too.
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode


class Preforked:
    """Runs commands, and programs in a file; they may run side by side."""

    def __init__(self) -> None:
        self._server = ForkServer("tests.preforked")
        self._lock = Lock()

    def close(self) -> None:
        """End the process that is forked; commands that run go on."""
        self._server.close()

    def is_fit_for(self, environment: Mapping[str, str]) -> bool:
        """Whether an environment tells nothing that is read before the fork."""
        return all(
            os.environ.get(name) == environment.get(name)
            for name in {*environment, *os.environ}
            if name.startswith(_READ_AT_START) and name != _BUFFERING
        )

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        given: str,
        seconds: float,
    ) -> "subprocess.CompletedProcess[str]":
        """Run `python -m runtime` until it ends, as `subprocess.run` does."""
        command = [RUNTIME, *arguments]
        process = self.start(command, folder, environment, stdin=subprocess.PIPE)
        out, err = process.communicate(given, timeout=seconds)
        return subprocess.CompletedProcess(arguments, process.wait(), out, err)

    def start(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> Forked:
        """Start a command and leave it running, as `subprocess.Popen` does.

        Args:
            command: `RUNTIME` or the path of a program in Python, with its arguments.
            folder: its working directory.
            environment: all of it.
            stdin: its standard input: a descriptor, or what `subprocess` has for a pipe or for nothing.
            stdout: its standard output.
            stderr: its standard error.
        """
        request, status = os.pipe(), os.pipe()
        streams = [_stream(stdin, 0), _stream(stdout, 1), _stream(stderr, 1)]
        with self._lock:
            self._server.send([request[0], status[1], *(theirs for theirs, _ in streams)])
        with open(request[1], "w") as pipe:
            json.dump([list(command), str(folder), dict(environment)], pipe)
        return Forked(status[0], *(ours for _, ours in streams))


def _stream(asked: int, theirs: int) -> tuple[int, int | None]:
    """The command's end of a stream, and ours; `theirs` is which end of a pipe the command gets."""
    if asked == subprocess.PIPE:
        ends = os.pipe()
        return ends[theirs], ends[1 - theirs]
    return (os.open(os.devnull, os.O_RDWR) if asked == subprocess.DEVNULL else os.dup(asked)), None


def _write(pipe: TextIO, text: str) -> None:
    with suppress(BrokenPipeError), pipe:
        pipe.write(text)


def _read(pipe: TextIO | None) -> str:
    if pipe is None or pipe.closed:
        return ""
    with pipe:
        return pipe.read()


def serve() -> None:
    """Fork a command for each request, until nobody can send one."""
    for module in _MODULES:
        import_module(module)
    if numbers := fork_for_each_request(5):
        _watch(*numbers)


def _watch(request: int, status: int, *streams: int) -> None:
    """Start a command; tell its process and its exit code."""
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _become(request, streams)
        return
    for each in (request, *streams):
        os.close(each)
    os.write(status, f"{pid}\n".encode())
    _, ended = os.waitpid(pid, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    os._exit(0)


def _become(request: int, streams: Sequence[int]) -> None:
    """Go on as the command."""
    with open(request) as pipe:
        (program, *arguments), folder, environment = json.load(pipe)
    for number, each in enumerate(streams):
        os.dup2(each, number)
        os.close(each)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    if environment.get(_BUFFERING):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = [program, *arguments]
    if program == RUNTIME:
        sys.path[0] = os.getcwd()
        runpy.run_module("runtime", run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program).resolve().parent)
        runpy.run_path(program, run_name="__main__")
