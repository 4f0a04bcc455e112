"""HTTP servers: a worker's small one for health and webhooks, and that of a command."""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from runtime.backoff import Outage, retrying
from runtime.errors import SettingsError

_log = logging.getLogger("runtime.http_server")
_RETRY_SECONDS = 2.0
_BODY_SECONDS = 10.0
HEAD_SECONDS = 10.0
"""How long a connection may stay open without a whole request's head."""


async def serve(what: str, host: str, port: int, app: Starlette, *, log: logging.Logger = _log) -> None:
    """Serve until cancelled; while another process has the port, try again and again.

    Args:
        what: the server's name in the log: "the webhook".
        host: the address to listen at.
        port: the port; 0 takes a free one, which the log names.
        app: the application.
        log: the logger for the address or the trouble.
    """
    outage = Outage(first=_RETRY_SECONDS, cap=_RETRY_SECONDS)

    async def bound_socket() -> socket.socket:
        return bind(host, port)

    def complain(error: OSError) -> None:
        why = "another process has it" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        log.error(
            "%s cannot listen at %s:%d: %s. The rest of the worker goes on; trying again within %.0f s.",
            what, host, port, why, _RETRY_SECONDS,
        )  # fmt: skip

    while True:
        listening = await retrying(bound_socket, outage, on=OSError, say=complain)
        log.info("%s listens at http://%s:%d/", what, host, listening.getsockname()[1])
        await _serve_at(listening, app)


def _config(
    app: ASGIApp, *, graceful_seconds: int = 1, most_connections: int | None = None
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_TimeoutProtocol,
        lifespan="off",
        log_config=None,
        # A line of it would hold the query, which may be secret.
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=graceful_seconds,
        limit_concurrency=most_connections,
    )


async def _serve_at(listening: socket.socket, app: Starlette) -> None:
    server = uvicorn.Server(_config(app, most_connections=100))
    try:
        await server.serve(sockets=[listening])
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(1):
            if server.started:
                await server.shutdown(sockets=[listening])
        listening.close()


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reachable from this machine only."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class _TimeoutProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection that is dropped if no whole request comes: uvicorn would wait for the rest of one for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._waits_since = self.loop.time()
        self._check_timeout()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop waiting."""
        self._timer.cancel()
        super().connection_lost(error)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def _check_timeout(self) -> None:
        now = self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            self._waits_since = now
        elif now - self._waits_since >= HEAD_SECONDS:
            self.transport.abort()
            return
        self._timer = self.loop.call_later(HEAD_SECONDS / 2, self._check_timeout)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the command has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not handle signals."""
        yield


def bound(what: str, host: str, port: int, *, or_free: bool = False) -> socket.socket:
    """Return a socket that listens already: early connections wait until it is served.

    Args:
        what: the server's name in the error: "The dashboard".
        host: the address to listen at.
        port: the port; 0 takes a free one.
        or_free: whether a free port does as well where another program has this one.

    Raises:
        SettingsError: the address cannot be listened at.
    """
    try:
        return _listening(host, port)
    except OSError as error:
        # Only listening tells: a port that was free when it was looked at may be taken by now.
        if or_free and error.errno == errno.EADDRINUSE:
            return bound(what, host, 0)
        raise SettingsError(
            f"{what} cannot listen at {host}:{port}: {error.strerror}. Name another with --host and --port."
        ) from None


def _listening(host: str, port: int) -> socket.socket:
    listening = bind(host, port)
    try:
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


@asynccontextmanager
async def served(
    listening: socket.socket, app: ASGIApp, *, graceful_seconds: float = 1
) -> AsyncIterator[None]:
    """Serve as long as the context is open.

    Args:
        listening: from `bound`; closed in the end.
        app: the application; its lifespan is the caller's to run.
        graceful_seconds: how long running requests may take after the context ends.
    """
    server = _Server(_config(app, graceful_seconds=max(1, round(graceful_seconds))))
    has_ended = anyio.Event()

    async def serve() -> None:
        await server.serve([listening])
        has_ended.set()

    with listening:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    server.should_exit = True
                    with anyio.move_on_after(graceful_seconds + 2):
                        await has_ended.wait()
            tasks.cancel_scope.cancel()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, which a restart may bind again at once."""
    family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
    except OSError:
        listening.close()
        raise
    return listening


class BodyRefused(Exception):
    """The body was not read to its end.

    Attributes:
        status: the HTTP status that says why.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the request's body, if it is within the limit.

    Raises:
        BodyRefused: it is larger (413), comes too slowly (408), or its sender hung up (400).
    """
    body = bytearray()
    try:
        with anyio.fail_after(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise BodyRefused(413, f"The body is larger than {max_bytes} bytes.")
    except TimeoutError:
        raise BodyRefused(408, f"The body did not come within {_BODY_SECONDS:.0f} seconds.") from None
    except ClientDisconnect:
        raise BodyRefused(400, "The sender hung up.") from None
    return bytes(body)
