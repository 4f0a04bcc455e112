"""TCP ports of 127.0.0.1: free ones, and the programs that hold the usual ones."""

import json
import logging
import os
import socket
from collections.abc import Collection
from pathlib import Path
from random import SystemRandom
from urllib.request import urlopen

from runtime.connection.local_stack import known_stacks

_log = logging.getLogger("runtime.local.ports")
# Below the ephemeral ports of systems: any client could take one of those before the server listens.
_FIRST, _LAST = 20_000, 32_000
_TRIES = 1_000
# As the ports of several projects with the Supabase CLI usually lie.
_STEP, _STEPS = 10, 50
_ANSWER_SECONDS = 1.0


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


def free_port_like(port: int, reserved: Collection[int]) -> int:
    """Return this port if it is free and not reserved, else the first such one of the ports 10, 20, 30 … above it."""
    for candidate in range(port, min(65_536, port + _STEP * _STEPS), _STEP):
        if candidate not in reserved and port_is_free(candidate):
            return candidate
    return free_port()


def api_port_like(port: int, reserved: Collection[int]) -> int:
    """Return a port for an API as `free_port_like` does; warn of the program that holds the one that was meant."""
    chosen = free_port_like(port, reserved)
    if chosen != port and port not in reserved:
        _log.warning("port %d is taken, by %s. This stack's API has port %d.", port, holder_of(port), chosen)
    return chosen


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


def ports_of_others(folder: Path) -> set[int]:
    """Return the ports that the stacks of other data folders remember, whether they run or not."""
    return {port for each in known_stacks() if each.data != folder for port in (each.api_port, each.db_port)}


def holder_of(port: int) -> str:
    """Return the program that holds the port of an API, in words, and how to use it if that is possible."""
    for stack in known_stacks():
        if stack.api_port == port and stack.is_running:
            return f"the stack of {stack.project or stack.data}"
    if _is_supabase(port):
        return (
            "`supabase start`. To use that one instead, apply the migrations to it and name it: "
            '`set -a; eval "$(supabase status -o env)"; set +a`'
        )
    return "another program"


def _is_supabase(port: int) -> bool:
    """Whether Supabase's Auth answers at this port; our own gateway serves none."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/auth/v1/health", timeout=_ANSWER_SECONDS) as answer:
            return "GoTrue" in json.dumps(json.loads(answer.read(10_000)))
    except (OSError, ValueError):
        return False
