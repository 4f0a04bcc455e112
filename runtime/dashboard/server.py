"""Serving the dashboard by uvicorn, beside the command's own work, until cancelled."""

import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import quote

import anyio

from runtime.agent.secrets import check_exposed
from runtime.client.factories import open_broadcasts
from runtime.client.stream import connect
from runtime.connection.environment import non_blank
from runtime.dashboard.app import make_app
from runtime.dashboard.context import DashboardContext
from runtime.dashboard.live_state import LiveState
from runtime.dashboard.schemas import Schemas
from runtime.dashboard.security import Guard
from runtime.errors import SettingsError
from runtime.http_server import bound, is_loopback, served
from runtime.settings import Settings


@asynccontextmanager
async def serving(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    or_free: bool = False,
    token: str | None = None,
    paths: Sequence[str] = (),
) -> AsyncIterator[str]:
    """Serve the dashboard; yield its URL, with the token if there is one.

    Args:
        settings: where the stream is.
        host: the address to listen at; any other than loopback needs a token, which is generated if none is given.
        port: 0 for any that is free.
        or_free: whether a free port does as well where another program has this one.
        token: of the callers; a blank one counts as none.
        paths: the agents whose schemas "Write" checks by, as `runtime run` takes them.

    Raises:
        SettingsError: the address cannot be listened at, or the token is too short for it.
    """
    token = door_token(host, token)
    listening = bound("The dashboard", host, port, or_free=or_free)
    at = listening.getsockname()[1]
    async with connect(settings) as stream, anyio.create_task_group() as tasks:
        guard, live_state, schemas = Guard(at, token), LiveState(stream), Schemas(paths)
        # Where nothing carries broadcasts, a conversation is shown without them.
        with suppress(SettingsError):
            live_state.broadcasts.receive = open_broadcasts(settings, ">", live_state.broadcasts.take)
        async with served(listening, make_app(DashboardContext(stream, live_state, guard, schemas), guard)):
            tasks.start_soon(live_state.run)
            tasks.start_soon(schemas.read)
            try:
                yield _url(host, at, token)
            finally:
                live_state.close()
        tasks.cancel_scope.cancel()


def door_token(host: str, token: str | None) -> str | None:
    """Return the token of callers: the given one, a generated one, or None if only this machine can call.

    Raises:
        SettingsError: the token is too short for an address that others can reach.
    """
    token = non_blank(token)
    if is_loopback(host):
        return token
    return (
        secrets.token_urlsafe(24)
        if token is None
        else check_exposed(token, "RUNTIME_DASHBOARD_TOKEN (--token)")
    )


def _url(host: str, port: int, token: str | None) -> str:
    shown = f"[{host}]" if ":" in host else socket.gethostname() if host == "0.0.0.0" else host
    return f"http://{shown}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")
