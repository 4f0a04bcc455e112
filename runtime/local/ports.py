"""Free TCP ports of 127.0.0.1."""

import os
import socket
from random import SystemRandom

# Below the ephemeral ports of systems: any client could take one of those before the server listens.
_FIRST, _LAST = 20_000, 32_000
_TRIES = 1_000


def free_port() -> int:
    """Return a port without a listener a moment ago."""
    random = SystemRandom()
    for _ in range(_TRIES):
        port = random.randint(_FIRST, _LAST)
        if port_is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        if os.name == "posix":
            # As servers do; else a port left a minute ago would count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
