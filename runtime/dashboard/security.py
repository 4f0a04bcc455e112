"""Access to the dashboard, decided before anything else runs.

On the loopback address every program of this machine may, but no page of another site: neither by a form (CSRF) nor
under a name of its own that points here (DNS rebinding). Anywhere else only who brings the token, in Jupyter's way:
once as `?token=…`, from then on as a cookie.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.connection.environment import non_blank

CSRF_HEADER = "x-csrf-token"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_SAFE = frozenset({"GET", "HEAD"})
STRICT_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_REFUSED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Refused</title>
<link rel="stylesheet" href="/static/dashboard.css"><body class="refused"><main><h1>Refused</h1><p>{why}</p></main>"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The refusal of a request, with its reason."""

    status: int
    why: str


@dataclass(frozen=True, slots=True)
class Login:
    """A log-in by a token in the URL: it becomes a cookie, and the URL loses it."""

    url: str


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules; `judge` decides, without I/O.

    Args:
        port: of the dashboard; part of the cookie's name, since a browser sends a cookie to every port of its host.
        token: of the callers; None, or a blank one, if only this machine can call.
    """

    port: int
    token: str | None
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", non_blank(self.token))

    @property
    def cookie(self) -> str:
        """The name of the cookie that holds the token."""
        return f"runtime-dashboard-{self.port}"

    def judge(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> Refusal | Login | None:
        """Return the refusal of a request or the log-in, or None if it may pass."""
        host = headers.get("host", "")
        if self.token is None and host.rpartition(":")[0] not in _LOOPBACK and host not in _LOOPBACK:
            # DNS rebinding: a foreign name that resolves to this machine would count as the dashboard's own origin.
            return Refusal(421, "This dashboard answers to 127.0.0.1 and localhost only.")
        if path.startswith("/static/") and method in _SAFE:
            return None
        if self.token is not None:
            brought = dict(parse_qsl(query)).get("token")
            if brought is not None and method in _SAFE and _same(brought, self.token):
                rest = urlencode([pair for pair in parse_qsl(query) if pair[0] != "token"])
                return Login(f"/{path.lstrip('/')}" + (f"?{rest}" if rest else ""))
            if not _same(self._brought(headers), self.token):
                return Refusal(
                    403,
                    "This dashboard asks for a token. Open the URL that `runtime dashboard` printed, "
                    "with its ?token=….",
                )
        if method not in _SAFE:
            return self._judge_change(host, headers)
        return None

    def _judge_change(self, host: str, headers: Mapping[str, str]) -> Refusal | None:
        origin = headers.get("origin", "")
        if origin.partition("://")[2] != host:
            return Refusal(403, "A change must come from the dashboard's own pages: this one did not.")
        if not _same(headers.get(CSRF_HEADER, ""), self.csrf):
            return Refusal(403, "This page is of an earlier start of the dashboard. Reload it.")
        return None

    def _brought(self, headers: Mapping[str, str]) -> str:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() in ("token", "bearer"):
            return given.strip()
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return ""
        return jar[self.cookie].value if self.cookie in jar else ""


def _same(given: str, meant: str) -> bool:
    return secrets.compare_digest(given.encode(), meant.encode())


class Guarded:
    """The application behind its guard; every response has the headers of a strict security policy."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            # The application has neither WebSockets nor a lifespan.
            return
        verdict = self._guard.judge(
            scope["method"], scope["path"], scope["query_string"].decode("latin-1"), Headers(scope=scope)
        )

        async def strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(STRICT_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        if verdict is None:
            await self._app(scope, receive, strict)
            return
        if isinstance(verdict, Refusal):
            await HTMLResponse(_REFUSED.format(why=verdict.why), verdict.status)(scope, receive, strict)
            return
        response = RedirectResponse(verdict.url, 303)
        response.set_cookie(
            self._guard.cookie, self._guard.token or "", httponly=True, samesite="strict",
            secure=scope["scheme"] == "https",
        )  # fmt: skip
        await response(scope, receive, strict)
