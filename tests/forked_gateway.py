"""Gateways forked from a process in which their modules are loaded: loading them is most of what a start costs."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from runtime.local.gateway_process import GatewayProcess
from runtime.local.logs import begin_log

_ROOT = Path(__file__).parents[1]


class GatewayForks:
    """A process that is forked for each gateway."""

    def __init__(self) -> None:
        self._door, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-c", "from tests.forked_gateway import serve; serve()", str(theirs.fileno())],
                cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip

    def close(self) -> None:
        """End the process that is forked; gateways that run go on."""
        self._door.close()
        self._server.wait()

    def fork(self, folder: Path, environment: dict[str, str], log: int) -> int:
        """Start a gateway in a folder, with an open file for its lines; returns its process."""
        request, told = os.pipe()
        with open(told, "w") as pipe:
            socket.send_fds(self._door, [b"."], [request, log])
            os.close(request)
            pipe.write(json.dumps([str(folder), environment]))
        return int(self._door.recv(20))


class _Fork:
    """What `GatewayProcess` asks of a process that it has started."""

    # Nobody waits for the forks, so it is not known.
    returncode = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """Whether it has ended, as `Popen.poll` tells it."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Return: the kernel removes it by itself."""


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
        with self.log.open("wb") as log:
            return _Fork(self._forks.fork(self.folder, self._environment(), log.fileno()))


def serve() -> None:
    """Fork a gateway for each request, until nobody can send one."""
    door = socket.socket(fileno=int(sys.argv[1]))
    main = import_module("runtime.local.gateway.__main__").main
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        said, (*numbers,), _, _ = socket.recv_fds(door, 1, 2)
        if not said:
            return
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            door.close()
            _become(*numbers)
            main()
            return
        for each in numbers:
            os.close(each)
        door.send(str(pid).encode())


def _become(request: int, log: int) -> None:
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
