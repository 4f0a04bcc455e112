"""Commands as processes of their own, forked from one in which the packages of others are loaded.

Loading them is three quarters of what a short command costs. The modules of `runtime` itself are loaded by each
command, as ever; so is all the rest of its life: its arguments, environment, streams, working directory, exit code.
"""

import gc
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

from tests.fork_server import ForkServer, door, next_request

_PACKAGES = (
    "asyncpg", "anyio", "cronsim", "dotenv", "httpx", "jwt", "pydantic", "pydantic_settings", "rich.console",
    "rich.table", "supabase", "typer",
)  # fmt: skip
# Read by Python or a package as it is loaded.
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "FORCE_COLOR", "TERMINAL_WIDTH")


class Preforked:
    """Runs `python -m runtime`; commands may run side by side."""

    def __init__(self) -> None:
        self._server = ForkServer("tests.cli.preforked")
        self._lock = Lock()

    def close(self) -> None:
        """End the process that is forked; commands that run go on."""
        self._server.close()

    def is_fit_for(self, environment: Mapping[str, str]) -> bool:
        """Whether an environment tells nothing that is read before the fork."""
        return all(
            os.environ.get(name) == environment.get(name)
            for name in {*environment, *os.environ}
            if name.startswith(_READ_AT_START)
        )

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        given: str,
        seconds: float,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command until it ends, as `subprocess.run` does."""
        told = json.dumps([list(arguments), str(folder), dict(environment)])
        # A request and what comes of it, then the three streams of the command.
        request, status, stdin, stdout, stderr = (os.pipe() for _ in range(5))
        theirs = [request[0], status[1], stdin[0], stdout[1], stderr[1]]
        with self._lock:
            self._server.send(theirs)
        with ThreadPoolExecutor(4) as pool:
            for number, text in ((request[1], told), (stdin[1], given)):
                pool.submit(_write, number, text)
            out, err = (pool.submit(_read, number) for number in (stdout[0], stderr[0]))
            code = _exit_code(status[0], seconds)
        return subprocess.CompletedProcess(arguments, code, out.result(), err.result())


def _write(number: int, text: str) -> None:
    with suppress(BrokenPipeError), open(number, "w") as pipe:
        pipe.write(text)


def _read(number: int) -> str:
    with open(number) as pipe:
        return pipe.read()


def _exit_code(number: int, seconds: float) -> int:
    """What a command ended with; it is killed when that takes longer.

    Raises:
        TimeoutError: it took longer.
    """
    with open(number) as pipe:
        pid = int(pipe.readline())
        # At the end of what the pipe holds it can be read from too.
        is_over = bool(select.select([pipe], [], [], seconds)[0])
        if not is_over:
            os.kill(pid, signal.SIGKILL)
        code = int(pipe.readline())
    if not is_over:
        raise TimeoutError(f"it did not end within {seconds:.0f} s")
    return code


def serve() -> None:
    """Fork a command for each request, until nobody can send one."""
    requests = door()
    for package in _PACKAGES:
        import_module(package)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while numbers := next_request(requests, 5):
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            _watch(*numbers)
            return
        for each in numbers:
            os.close(each)


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
    arguments, folder, environment = json.loads(_read(request))
    for number, each in enumerate(streams):
        os.dup2(each, number)
        os.close(each)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv = ["runtime", *arguments]
    sys.path[0] = os.getcwd()
    runpy.run_module("runtime", run_name="__main__", alter_sys=True)
