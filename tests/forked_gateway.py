"""Gateways forked from a process in which their modules are loaded."""

import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from runtime.local.gateway_process import GatewayProcess
from runtime.local.logs import begin_log
from tests.fork_server import ForkServer, fork_for_each_request


class GatewayForks:
    """Forks gateways."""

    def __init__(self) -> None:
        self._server = ForkServer("tests.forked_gateway")

    def close(self) -> None:
        """End the process that is forked; gateways that run go on."""
        self._server.close()

    def fork(self, folder: Path, environment: dict[str, str], log: Path) -> psutil.Process:
        """Start a gateway in a folder, with a file for its lines; returns its process."""
        (request, told), (answer, answered) = os.pipe(), os.pipe()
        self._server.send([request, answered, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)])
        with open(told, "w") as pipe:
            json.dump([str(folder), environment], pipe)
        with open(answer) as pipe:
            return psutil.Process(int(pipe.readline()))


class _Fork:
    """What `GatewayProcess` asks of a process that it has started; the kernel removes it at its end."""

    # Nobody waits for a fork, so its exit code is not known.
    returncode = None

    def __init__(self, process: psutil.Process) -> None:
        self.pid = process.pid
        self._process = process

    def poll(self) -> int | None:
        """Whether it has ended, as `Popen.poll` tells it."""
        return None if self._process.is_running() else 0

    def kill(self) -> None:
        """End it, and no later process with its number."""
        with suppress(psutil.NoSuchProcess):
            self._process.kill()

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()


class ForkedGateway(GatewayProcess):
    """A gateway that is forked instead of started.

    Args:
        folder: an existing folder.
        forks: what it is forked from.
        given: as for `GatewayProcess`.
    """

    def __init__(self, folder: Path, forks: GatewayForks, **given: Any) -> None:
        super().__init__(folder, **given)
        self._forks = forks

    @property
    def pid(self) -> int | None:
        """Return the pid of its process, or None."""
        child: Any = self._child
        return None if child is None or child.poll() is not None else child.pid

    def _spawn(self) -> Any:
        begin_log(self.log)
        return _Fork(self._forks.fork(self.folder, self._environment(), self.log))


def serve() -> None:
    """Fork a gateway for each request, until nobody can send one."""
    main = import_module("runtime.local.gateway.__main__").main
    if numbers := fork_for_each_request(3):
        _become(*numbers)
        main()


def _become(request: int, answer: int, log: int) -> None:
    """Go on as the gateway."""
    os.write(answer, f"{os.getpid()}\n".encode())
    os.close(answer)
    with open(request) as pipe:
        folder, environment = json.load(pipe)
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
