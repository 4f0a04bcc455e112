"""Is a free port still free when the server comes?"""

import socket
from pathlib import Path

import pytest

from runtime.local.ports import free_port, port_is_free

CLIENTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.mark.skipif(not CLIENTS.exists(), reason="only Linux tells which ports clients get")
def test_a_free_port_is_none_that_a_client_may_get_meanwhile() -> None:
    lowest = int(CLIENTS.read_text().split()[0])
    assert all(free_port() < lowest for _ in range(50))


def test_a_port_is_free_until_somebody_listens() -> None:
    port = free_port()
    assert port_is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
    assert port_is_free(port)
