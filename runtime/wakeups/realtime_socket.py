"""A WebSocket to Realtime: its address, its token, and the reason when it cannot be opened."""

import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import isawaitable
from typing import Protocol
from urllib.parse import quote, urlsplit

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    ProxyError,
)  # fmt: skip

from runtime.connection.claims import expiry_of
from runtime.connection.proxies import CERTIFICATE_CURE, socket_options
from runtime.errors import SettingsError
from runtime.wakeups.effects import Close, RefusalKind, classify
from runtime.wakeups.frames import VERSION

TokenProvider = Callable[[], str | Awaitable[str]]

# The library logs the URL, and that contains the key.
_quiet = logging.getLogger("runtime.wakeups.websockets")
_quiet.setLevel(logging.CRITICAL + 1)
_MAX_FRAME_BYTES = 8 * 2**20


class NotOpened(Exception):
    """There is no socket.

    Attributes:
        close: why, and when to try again.
    """

    def __init__(self, why: str, refusal: RefusalKind = RefusalKind.RETRY) -> None:
        super().__init__(why)
        self.close = Close(why, refusal)


@dataclass(frozen=True, slots=True)
class ChannelToken:
    """A JWT for the channel, and when to get the next one, in monotonic seconds."""

    text: str | None
    renew_at: float | None


class ChannelSocket(Protocol):
    """Text and binary frames, in and out."""

    async def send(self, frame: str, /) -> None:
        """Send one frame."""

    async def recv(self) -> str | bytes:
        """Return the next frame; raises `ConnectionClosed` at the end."""

    async def close(self) -> None:
        """Close it."""


class Endpoint(Protocol):
    """A Realtime server, as it is reached."""

    place: str
    """The server's host and port, for the log."""

    async def open(self) -> ChannelSocket:
        """Open a socket; raises `NotOpened`."""

    async def token(self) -> ChannelToken:
        """Return the channel's token; raises `NotOpened`."""


class RealtimeEndpoint:
    """The Realtime server of a project, as one key reaches it.

    Args:
        url: the project's URL, as in SUPABASE_URL.
        key: the service_role JWT or an `sb_secret_…` key.
        provider: returns a JWT for the channel; by default the key is used, if it is a JWT.
        open_seconds: how long opening may take, and getting a token.
        close_seconds: how long closing may take.

    Attributes:
        place: the server's host and port, for the log.

    Raises:
        SettingsError: `url` is no http or https URL, or a variable of the environment names a proxy or certificates
            that cannot be used.
    """

    def __init__(
        self, url: str, key: str, provider: TokenProvider | None, *, open_seconds: float, close_seconds: float
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(
                "SUPABASE_URL must be an http or https URL, such as https://<ref>.supabase.co."
            )
        self.place = parts.netloc.rpartition("@")[2]
        scheme = "wss" if parts.scheme == "https" else "ws"
        self._address = f"{scheme}://{self.place}{parts.path.rstrip('/')}/realtime/v1/websocket"
        # The same proxy as for requests; it sees the key only if the URL is not encrypted.
        self._options = socket_options(self._address)
        self._key = key
        self._provider = provider
        self._open_seconds = open_seconds
        self._close_seconds = close_seconds

    async def open(self) -> ClientConnection:
        """Open a socket.

        Raises:
            NotOpened: the server cannot be reached, or refuses.
        """
        try:
            with anyio.fail_after(self._open_seconds):
                return await _ConnectHereOnly(
                    f"{self._address}?apikey={quote(self._key)}&vsn={VERSION}",
                    max_size=_MAX_FRAME_BYTES,
                    compression=None,
                    ping_interval=None,
                    open_timeout=None,
                    close_timeout=self._close_seconds,
                    logger=_quiet,
                    **self._options,
                )
        except (OSError, InvalidHandshake, InvalidURI, InvalidProxy, EOFError) as error:
            raise not_opened(error) from None

    async def token(self) -> ChannelToken:
        """Return the channel's token: the provider's, or the key itself if it is a JWT.

        Raises:
            NotOpened: the provider failed.
        """
        if self._provider is None:
            # An sb_… key is no JWT: the join takes its role from the socket.
            return ChannelToken(None if self._key.startswith("sb_") else self._key, None)
        received = time.monotonic()
        try:
            with anyio.fail_after(self._open_seconds):
                given = self._provider()
                text = await given if isawaitable(given) else given
        except Exception as error:
            why = f"the token provider failed with {type(error).__name__}"
            raise NotOpened(why, RefusalKind.TOKEN) from error
        expiry = expiry_of(text)
        if expiry is None:
            return ChannelToken(text, None)
        return ChannelToken(text, received + 0.8 * max(1.0, expiry - time.time()))


class _ConnectHereOnly(connect):
    """Connects to the URL given and follows no redirect: that would send the key to another server."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Treat a redirect as a refused handshake."""
        return exc


def not_opened(error: Exception) -> NotOpened:
    """Return the reason why a connection failed, without the text of the library's error."""
    if isinstance(error, InvalidStatus):
        return _refused(error)
    if isinstance(error, TimeoutError):
        return NotOpened("no connection in time")
    return NotOpened(_no_connection(error))


def _no_connection(error: Exception) -> str:
    """Why there is no connection. The libraries' own texts may contain the URL, and that contains the key."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"no connection: the server's certificate is not trusted ({error.verify_message})"
        return f"{why}. {CERTIFICATE_CURE}".rstrip(".")
    if isinstance(error, InvalidProxy | ProxyError):
        return "no connection: the proxy refused (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY)"
    return f"no connection: {type(error).__name__}"


def _refused(error: InvalidStatus) -> NotOpened:
    """A refused upgrade, classified by its status and its JSON."""
    status = error.response.status_code
    try:
        problem = json.loads(error.response.body or b"")
        text = str(problem.get("error") or problem.get("message") or "") if isinstance(problem, dict) else ""
    except (ValueError, RecursionError):
        text = ""
    why = f"the handshake was refused with {status}" + (f": {text}" if text else "")
    if status == 429:
        return NotOpened(why, RefusalKind.RATE)
    if status in (401, 403, 404):
        kind = classify(text) if text else RefusalKind.RETRY
        return NotOpened(why, RefusalKind.OPERATOR if kind is RefusalKind.RETRY else kind)
    return NotOpened(why)
