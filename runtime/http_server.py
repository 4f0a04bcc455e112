"""How is HTTP served? By a worker on a small port of its own, or by a command as long as it runs."""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from runtime.errors import SettingsError

_log = logging.getLogger("runtime.http_server")
_RETRY_SECONDS = 2.0
_BODY_SECONDS = 10.0
HEAD_SECONDS = 10.0
"""How long a connection may stay open without a whole request's head."""


async def serve(what: str, host: str, port: int, app: Starlette, *, log: logging.Logger = _log) -> None:
    """Serve until cancelled; while another process has the port, ask for it again and again.

    Args:
        what: what listens, for the log: "the webhook".
        host: the address to listen at.
        port: the port; 0 takes a free one, which the log names.
        app: what answers.
        log: whose log says where it listens.
    """
    said = ""
    while True:
        try:
            listening = bind(host, port)
        except OSError as error:
            said = _say(what, host, port, error, said, log.error)
            await anyio.sleep(_RETRY_SECONDS)
            continue
        said = ""
        log.info("%s listens at http://%s:%d/", what, host, listening.getsockname()[1])
        await _serve_at(listening, app)


async def _serve_at(listening: socket.socket, app: Starlette) -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=_Hasty,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            limit_concurrency=100,
        )
    )
    try:
        await server.serve(sockets=[listening])
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(1):
            if server.started:
                await server.shutdown(sockets=[listening])
        listening.close()


def _say(what: str, host: str, port: int, error: OSError, said: str, log: Callable[..., None]) -> str:
    """Log once why the port cannot be had; returns what was said."""
    why = "another process has it" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
    if why != said:
        log(
            "%s cannot listen at %s:%d: %s. The rest of the worker goes on; trying again every %.0f s.",
            what,
            host,
            port,
            why,
            _RETRY_SECONDS,
        )
    return why


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine alone."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class _Hasty(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection that is dropped when no request comes of it: uvicorn would wait for the rest of one for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._waits_since = self.loop.time()
        self._look()

    def connection_lost(self, error: Exception | None) -> None:
        """Wait no longer."""
        self._timer.cancel()
        super().connection_lost(error)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def _look(self) -> None:
        now = self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            self._waits_since = now
        elif now - self._waits_since >= HEAD_SECONDS:
            self.transport.abort()
            return
        self._timer = self.loop.call_later(HEAD_SECONDS / 2, self._look)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the command has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def bound(what: str, host: str, port: int) -> socket.socket:
    """Return a socket that listens already: who connects before it is served waits.

    Args:
        what: what listens, for the error: "The dashboard".
        host: the address to listen at.
        port: the port; 0 takes a free one.

    Raises:
        SettingsError: nothing can listen there.
    """
    try:
        listening = bind(host, port)
    except OSError as error:
        raise SettingsError(
            f"{what} cannot listen at {host}:{port}: {error.strerror}. Name another with --host and --port."
        ) from None
    try:
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise SettingsError(f"{what} cannot listen at {host}:{port}: {error.strerror}.") from None
    return listening


@asynccontextmanager
async def served(
    listening: socket.socket, app: ASGIApp, *, graceful_seconds: float = 1
) -> AsyncIterator[None]:
    """Serve as long as the context is open.

    Args:
        listening: what `bound` returned; closed in the end.
        app: what answers. Its lifespan is the caller's to run.
        graceful_seconds: how long requests may go on when the context ends.
    """
    config = uvicorn.Config(
        app,
        http=_Hasty,
        lifespan="off",
        log_config=None,
        # Its lines would hold what is secret in a query.
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(graceful_seconds)),
    )
    server, has_ended = _Server(config), anyio.Event()

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
    """Return the request's body; never more of it is kept than the limit.

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
