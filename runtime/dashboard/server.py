"""How is the dashboard served? By uvicorn, beside whatever else the command does, until cancelled."""

import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

from runtime.dashboard.app import make_app
from runtime.dashboard.desk import Desk
from runtime.dashboard.guard import Guard, is_loopback
from runtime.dashboard.pulse import Pulse
from runtime.dashboard.schemas import Schemas
from runtime.serving import bound, served
from runtime.settings import Settings
from runtime.stream import connect


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
    listening = bound("The dashboard", host, port)
    at = listening.getsockname()[1]
    async with connect(settings) as stream, anyio.create_task_group() as tasks:
        guard, pulse, schemas = Guard(at, token), Pulse(stream), Schemas(paths)
        async with served(listening, make_app(Desk(stream, pulse, guard, schemas), guard)):
            tasks.start_soon(pulse.run)
            tasks.start_soon(schemas.read)
            try:
                yield _url(host, at, token)
            finally:
                pulse.close()
        tasks.cancel_scope.cancel()


def _url(host: str, port: int, token: str | None) -> str:
    shown = f"[{host}]" if ":" in host else socket.gethostname() if host == "0.0.0.0" else host
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
