"""The web pages that may use the gateway: those of this machine, and those that are named.

The keys of a local stack are published, so a page anywhere in the web could read and write the stream of whoever
looks at it. A browser says where a page is from: in `Origin`, and in `Host` when a foreign name was made to lead here.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

LOOPBACK: Final = r"https?://((.+\.)?localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?"
"""The origins of this machine, as a regular expression."""

_IS_LOOPBACK: Final = re.compile(LOOPBACK, re.IGNORECASE)


class Origins:
    """Refuses requests and sockets of other people's pages, before anything else looks at them.

    Args:
        app: what answers the others.
        allowed: origins that are let in, such as "https://app.example".
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app = app
        self._origins = {origin.rstrip("/").lower() for origin in allowed}
        self._hosts = {urlsplit(origin).hostname for origin in self._origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have it answered."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            await WebSocket(scope, receive, send).send_denial_response(refusal)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        for origin in headers.getlist("origin"):
            if not self._is_let_in(origin):
                return _refused(f"Pages of {origin} may not use this local stack", origin)
        host = headers.get("host", "localhost")
        if not self._is_ours(host):
            return _refused(f"This local stack does not answer to the name {host}", f"https://{host}")
        return None

    def _is_let_in(self, origin: str) -> bool:
        # "null" is the origin of a page opened from a file.
        return (
            origin == "null" or origin.lower() in self._origins or _IS_LOOPBACK.fullmatch(origin) is not None
        )

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name == "localhost" or name.endswith(".localhost") or name in self._hosts or _is_address(name)


def _is_address(name: str) -> bool:
    """An address in numbers needs no name server that could lie about it."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _refused(what: str, origin: str) -> JSONResponse:
    return JSONResponse(
        {"message": f"{what}. Allow it with: runtime local start --allow-origin {origin}"}, status_code=403
    )
