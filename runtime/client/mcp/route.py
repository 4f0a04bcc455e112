"""The server behind HTTP: one route, for those who bring the token."""

import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import anyio
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from runtime.backoff import Outage
from runtime.client.mcp.server import StreamServer
from runtime.errors import RuntimeFault, first_fault

_log = logging.getLogger("runtime.client.mcp")
_RETRY_AFTER: Final = {"retry-after": "5"}


class ToolsRoute:
    """An ASGI application that speaks Streamable HTTP, while `running` is entered.

    Every request needs the token, so a page whose own name leads here (DNS rebinding) gets nothing. A request from a
    page of another site is refused even with the token.

    Args:
        server: what is served.
        token: what clients send as `authorization: Bearer …`.
    """

    def __init__(self, server: StreamServer, token: str) -> None:
        self._server = server
        self._token = token.encode()
        self._sessions: StreamableHTTPSessionManager | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        sessions = self._sessions
        refusal = self._refusal(Headers(scope=scope))
        if refusal is None and sessions is None:
            refusal = PlainTextResponse(
                "The tools are not served now: the stream cannot be reached, or the host application does not run the "
                "lifespan of this one.\n",
                503,
                _RETRY_AFTER,
            )
        if refusal is not None or sessions is None:
            await (refusal or Response(status_code=503))(scope, receive, send)
        else:
            await sessions.handle_request(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            token.strip().encode("latin-1"), self._token
        ):
            return PlainTextResponse(
                "Send RUNTIME_MCP_TOKEN as `authorization: Bearer …`.\n", 401, {"www-authenticate": "Bearer"}
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return PlainTextResponse("Pages of other sites may not call tools.\n", 403)
        return None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while this is entered; where the stream cannot be opened, it is tried again and again."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run)
            yield
            tasks.cancel_scope.cancel()

    async def _run(self) -> None:
        outage = Outage(first=0.5, cap=10.0)
        while True:
            # It runs once in its life.
            sessions = StreamableHTTPSessionManager(self._server.build())
            try:
                async with sessions.run():
                    self._sessions = sessions
                    outage.over()
                    await anyio.sleep_forever()
            except* RuntimeFault as faults:
                fault = first_fault(faults)
                if outage.is_news(str(fault)):
                    _log.error("tools are not served over HTTP now: %s", fault)
            finally:
                self._sessions = None
            await anyio.sleep(outage.pause_seconds())
