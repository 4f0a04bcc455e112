"""Is a free port still free when the server comes?"""

import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from runtime.local.ports import free_port, free_port_like, holder_of, port_is_free

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


def test_a_port_like_a_taken_one_lies_ten_above_unless_that_is_reserved() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert free_port_like(port, {port + 10}) in range(port + 20, port + 500, 10)
    assert free_port_like(port, ()) == port


def test_supabase_start_is_recognised_and_its_use_told() -> None:
    class Auth(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/auth/v1/health" else 404)
            self.end_headers()
            self.wfile.write(b'{"name": "GoTrue", "version": "v2"}')

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Auth) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        told = holder_of(server.server_port)
        server.shutdown()
    assert told.startswith("`supabase start`")
    assert "supabase status -o env" in told
    assert holder_of(free_port()) == "another program"
