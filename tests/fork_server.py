"""Processes forked from one in which modules are loaded already, since loading them is most of what a start costs."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[1]


class ForkServer:
    """A process that is forked for each request.

    Args:
        module: the one whose `serve` it runs, which takes the requests.
    """

    def __init__(self, module: str) -> None:
        self._door, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import serve; serve()", str(theirs.fileno())],
                cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip

    def close(self) -> None:
        """End the process that is forked; its forks go on."""
        self._door.close()
        self._server.wait()

    def send(self, descriptors: Sequence[int]) -> None:
        """Ask for a fork that has these descriptors, which are closed here."""
        socket.send_fds(self._door, [b"."], descriptors)
        for each in descriptors:
            os.close(each)


def door() -> socket.socket:
    """Where the requests come in, in the process that is forked."""
    return socket.socket(fileno=int(sys.argv[1]))


def next_request(door: socket.socket, count: int) -> Sequence[int] | None:
    """The descriptors of the next request; None when nobody can make one any more."""
    said, descriptors, _, _ = socket.recv_fds(door, 1, count)
    return descriptors if said else None
