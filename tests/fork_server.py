"""Processes forked from one in which modules are loaded already, since loading them is most of what a start costs."""

import gc
import os
import signal
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


def fork_for_each_request(count: int) -> Sequence[int] | None:
    """Fork for each request, in the process that is forked, until nobody can make one any more.

    Args:
        count: how many descriptors come with a request.

    Returns:
        In each fork the descriptors of its request, and None in the end in the process itself.
    """
    requests = socket.socket(fileno=int(sys.argv[1]))
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while numbers := _next_request(requests, count):
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            return numbers
        for each in numbers:
            os.close(each)
    return None


def _next_request(requests: socket.socket, count: int) -> Sequence[int]:
    said, descriptors, _, _ = socket.recv_fds(requests, 1, count)
    return descriptors if said else ()
