"""How is the dashboard served? By uvicorn, beside whatever else the command does, until cancelled."""

import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio
import uvicorn

from runtime.dashboard.app import make_app
from runtime.dashboard.desk import Desk
from runtime.dashboard.guard import Guard, is_loopback
from runtime.dashboard.pulse import Pulse
from runtime.dashboard.schemas import Schemas
from runtime.errors import SettingsError
from runtime.settings import Settings
from runtime.stream import connect


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the command has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


@asynccontextmanager
async def serving(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    paths: Sequence[str] = (),
) -> AsyncIterator[str]:
    """Serve the dashboard; yields its URL, with the token where there is one.

    Args:
        settings: where the stream is.
        host: the address to listen at; any but the loopback's needs a token, and one is drawn where none is given.
        port: 0 for any that is free.
        token: what a caller must know.
        paths: the agents whose schemas "Write" checks by, as `runtime run` takes them.

    Raises:
        SettingsError: nothing can listen there.
    """
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    with _listening(host, port) as listener:
        bound = listener.getsockname()[1]
        async with connect(settings) as stream, anyio.create_task_group() as tasks:
            guard, pulse, schemas = Guard(bound, token), Pulse(stream), Schemas(paths)
            server = _Server(
                uvicorn.Config(
                    make_app(Desk(stream, pulse, guard, schemas), guard),
                    lifespan="off",
                    log_level="warning",
                    # Its lines would hold the token.
                    access_log=False,
                    timeout_graceful_shutdown=1,
                )
            )
            tasks.start_soon(pulse.run)
            tasks.start_soon(schemas.read)
            served = anyio.Event()

            async def serve() -> None:
                await server.serve([listener])
                served.set()

            tasks.start_soon(serve)
            try:
                yield _url(host, bound, token)
            finally:
                with anyio.CancelScope(shield=True):
                    pulse.close()
                    server.should_exit = True
                    with anyio.move_on_after(3):
                        await served.wait()
                tasks.cancel_scope.cancel()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except OSError as error:
        raise SettingsError(
            f"The dashboard cannot listen at {host}:{port}: {error.strerror}. Name another with --host and --port."
        ) from None
    with listener:
        yield listener


def _url(host: str, port: int, token: str | None) -> str:
    shown = f"[{host}]" if ":" in host else socket.gethostname() if host == "0.0.0.0" else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
