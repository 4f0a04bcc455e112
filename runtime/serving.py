"""How does a worker listen on a small HTTP port of its own? Until it ends, and again when the port becomes free."""

import errno
import logging
import socket
from collections.abc import Callable

import anyio
import uvicorn
from starlette.applications import Starlette

_log = logging.getLogger("runtime.serving")
_RETRY_SECONDS = 2.0


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
