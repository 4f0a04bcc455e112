"""A real HTTP server on 127.0.0.1 that receives webhooks, notes every request, and answers as a test says."""

import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        """The header."""
        return self.headers["webhook-id"]

    @property
    def value(self) -> Any:
        """What was written to the stream."""
        return json.loads(self.body)["data"]


@dataclass
class Answering:
    """What is answered: a status, a body and headers; None as the status hangs up."""

    status: int | None = 200
    body: bytes | dict[str, Any] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Receiver:
    """A server and what it received.

    Attributes:
        answer: what the next requests are answered; a test sets it as it goes.
    """

    port: int
    host: str
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], Answering] = lambda _: Answering()

    @property
    def url(self) -> str:
        """Where to post."""
        return f"http://{self.host}:{self.port}/hook"

    @property
    def values(self) -> list[Any]:
        """What was received, in order."""
        return [each.value for each in self.received]


@contextmanager
def receiving(
    host: str = "127.0.0.1", port: int = 0, *, tls: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    """A server for the time of a test."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(length)
            if len(body) < length:
                # Its sender was killed while it wrote: that is no request.
                self.close_connection = True
                return
            request = Received(self.path, headers, body)
            receiver.received.append(request)
            answering = receiver.answer(request)
            if answering.status is None:
                self.close_connection = True
                return
            is_json = isinstance(answering.body, dict)
            body = json.dumps(answering.body).encode() if is_json else answering.body
            given = {"content-type": "application/json"} if is_json else {}
            self.send_response(answering.status)
            for name, value in {**given, **answering.headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: the tests look at what was received."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Nothing: senders are killed, and hang up."""

    with Server((host, port), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        receiver = Receiver(server.server_port, host)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
