"""How does a channel reach its server? A thin driver on `websockets` that reconnects for ever."""

import json
import logging
import re
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from inspect import isawaitable
from random import Random
from urllib.parse import quote, urlsplit
from uuid import UUID

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    ProxyError,
)

from runtime.backoff import Outage, backoff_seconds
from runtime.connection.claims import expiry_of
from runtime.connection.proxies import CERTIFICATE_CURE, socket_options
from runtime.errors import SettingsError
from runtime.settings import Settings
from runtime.wakeups import Listener, Path
from runtime.wakeups.effects import (
    Close,
    Effect,
    Gap,
    Live,
    Lost,
    Prove,
    RefusalKind,
    Send,
    Wake,
    classify,
)  # fmt: skip
from runtime.wakeups.frames import VERSION
from runtime.wakeups.phoenix import STILL_MISSING, PhoenixChannel, Timings

TokenProvider = Callable[[], str | Awaitable[str]]

_log = logging.getLogger("runtime.wakeups")
# The library's own log lines hold the URL, and that holds the key.
_quiet = logging.getLogger("runtime.wakeups.websockets")
_quiet.setLevel(logging.CRITICAL + 1)
_MAX_FRAME_BYTES = 8 * 2**20
_DIGITS = re.compile("[0-9]+")


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long to wait before the next connection, in seconds."""

    first: float = 0.2
    cap: float = 10.0
    rate: float = 30.0
    operator: float = 60.0
    stable: float = 30.0
    open: float = 10.0
    close: float = 1.0


class RealtimeWakeups:
    """Wake-ups over Supabase Realtime: broadcast from the database and postgres_changes, on one channel.

    Args:
        url: the project's URL, as in SUPABASE_URL.
        key: the service_role JWT or an `sb_secret_…` key.
        worker: whose wake-ups these are.
        keys: the patterns of its handlers.
        settings: which paths to use, and the intervals.
        token: where a JWT for the channel comes from, asked before each connection and before it expires; by
            default the key itself, where it is one.
        timings: the channel's intervals; by default those of the settings.
        pauses: the driver's.

    Raises:
        SettingsError: `url` is no http or https URL, or a variable of the environment names a proxy or certificates
            that cannot be used.
    """

    def __init__(
        self,
        url: str,
        key: str,
        worker: UUID,
        *,
        keys: Sequence[str],
        settings: Settings,
        token: TokenProvider | None = None,
        timings: Timings | None = None,
        pauses: Pauses | None = None,
    ) -> None:
        wanted: dict[Path, bool] = {
            "broadcast": settings.broadcast,
            "postgres_changes": settings.postgres_changes,
        }
        self.paths: tuple[Path, ...] = tuple(path for path, is_on in wanted.items() if is_on)
        self._address, self._place = _address(url)
        # By the rule for requests; where a URL is encrypted, a proxy sees no more than the host.
        self._way = socket_options(self._address)
        self._key = key
        self._worker = worker
        self._patterns = keys
        self._provider = token
        self._timings = timings or Timings(
            heartbeat=settings.heartbeat_seconds,
            nonce=settings.nonce_seconds,
            nonce_deadline=settings.nonce_deadline_seconds,
        )
        self._pauses = pauses or Pauses()
        self._random = Random()
        self._doubts = False
        self._leaves_broadcast_out = False
        self._resting: anyio.CancelScope | None = None
        self._outage = Outage()
        # How often the channel has started over for a path that was missing while another one was live.
        self._mends = 0
        # Of the socket that is open, or was last: frames by kind, and the proofs of each path.
        self.counts: Counter[str] = Counter()

    def doubt(self) -> None:
        """Work was found that no wake-up announced: ask for a nonce at once."""
        self._doubts = True
        if self._resting is not None:
            self._resting.cancel()

    @property
    def mend_seconds(self) -> float:
        """How long the next channel leaves a missing path alone before it starts over.

        What went missing with a thaw or a restart is back in seconds; what stays away is asked for ever more rarely.
        """
        return min(self._timings.mend, self._timings.first_mend * 2.0 ** min(self._mends, 10))

    async def run(self, listener: Listener) -> None:
        """Listen for ever, reconnecting as often as needed, until cancelled."""
        failures = 0
        while True:
            began = time.monotonic()
            channel = self._channel()
            close = await self._live_through(channel, listener)
            self._mends = 0 if channel.is_whole else self._mends + channel.is_proved
            # A server that accepts and hangs up at once must not be asked in a tight loop.
            if time.monotonic() - began >= self._pauses.stable:
                failures = 0
            failures += 1
            self._leaves_broadcast_out = (
                close.refusal is RefusalKind.PRIVATE and self._may_leave_broadcast_out
            )
            pause = self._pause(close.refusal, failures)
            self._say(close, pause, was_live=channel.is_proved)
            await anyio.sleep(pause)

    async def listen_once(self, listener: Listener) -> Close:
        """Live through one socket and return why it ended."""
        return await self._live_through(self._channel(), listener)

    async def _live_through(self, channel: PhoenixChannel, listener: Listener) -> Close:
        self.counts = channel.counts
        try:
            token = await self._token()
            with anyio.fail_after(self._pauses.open):
                socket = await _ConnectHereOnly(
                    f"{self._address}?apikey={quote(self._key)}&vsn={VERSION}",
                    max_size=_MAX_FRAME_BYTES,
                    compression=None,
                    ping_interval=None,
                    open_timeout=None,
                    close_timeout=self._pauses.close,
                    logger=_quiet,
                    **self._way,
                )
        except _NoToken as error:
            return Close(str(error), RefusalKind.TOKEN)
        except InvalidStatus as error:
            return _refused(error)
        except TimeoutError:
            return Close("no connection in time")
        except (OSError, InvalidHandshake, InvalidURI, InvalidProxy, EOFError) as error:
            return Close(_no_connection(error))
        try:
            close = await self._converse(socket, channel, token, listener)
        except ConnectionClosed as error:
            received = error.rcvd
            close = Close(f"the socket was closed with code {received.code if received else 1006}")
        except TimeoutError:
            close = Close("the server takes no frames")
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._pauses.close):
                await socket.close()
        # Not after a cancellation: then nobody listens any more, and nothing is lost.
        for effect in channel.end(close.why):
            self._tell(effect, listener)
        return close

    def _channel(self) -> PhoenixChannel:
        """The channel of the next socket."""
        is_partial = self._leaves_broadcast_out
        paths = tuple(path for path in self.paths if path != "broadcast") if is_partial else self.paths
        return PhoenixChannel(
            self._worker, self._patterns, paths, self._timings, is_partial, self.mend_seconds
        )

    async def _converse(
        self, socket: ClientConnection, channel: PhoenixChannel, token: "_Token", listener: Listener
    ) -> Close:
        effects = channel.open(time.monotonic(), token.text)
        while True:
            is_ending = any(isinstance(effect, Close) for effect in effects)
            for effect in effects:
                if isinstance(effect, Close):
                    return effect
                if isinstance(effect, Lost) and not is_ending and channel.is_proved:
                    level = self._outage.level(f"without {effect.path}", logging.WARNING)
                    _log.log(
                        level, "%s is lost: %s; the other path carries on, and this one is tried anew in %.0f s",
                        effect.path, effect.why, channel.mend_pause,
                    )  # fmt: skip
                if isinstance(effect, Live) and channel.is_whole:
                    self._outage.over()
                if isinstance(effect, Send):
                    with anyio.fail_after(self._timings.heartbeat):
                        await socket.send(effect.frame)
                else:
                    self._tell(effect, listener)
            now = time.monotonic()
            if token.renew_at is not None and now >= token.renew_at:
                token = await self._renewed(token)
                effects = channel.push_token(token.text, time.monotonic()) if token.text else []
                continue
            if self._doubts:
                self._doubts = False
                effects = channel.doubt(now)
                if effects:
                    continue
            if effects := channel.tick(now):
                continue
            rest = channel.rest(now)
            if token.renew_at is not None:
                rest = min(rest, token.renew_at - now)
            effects = await self._next(socket, channel, rest)

    async def _next(self, socket: ClientConnection, channel: PhoenixChannel, seconds: float) -> list[Effect]:
        """What the next frame brings, or nothing when the time is over or a doubt came up."""
        with anyio.move_on_after(seconds) as self._resting:
            frame = await socket.recv()
            return channel.receive(frame, time.monotonic())
        return []

    def _tell(self, effect: Effect, listener: Listener) -> None:
        """Pass an effect on. A listener that raises must not end the conversation, as it does elsewhere."""
        try:
            self._pass_on(effect, listener)
        except Exception:  # noqa: BLE001 - whatever it is, it is logged, and the socket is not to blame
            _log.exception("the listener failed on %s; listening goes on", type(effect).__name__)

    def _pass_on(self, effect: Effect, listener: Listener) -> None:
        match effect:
            case Wake(path, message):
                listener.wake(path, message)
            case Live(path):
                _log.info("%s is live at %s", path, self._place)
                listener.live(path)
            case Gap(path, why):
                listener.gap(path, why)
            case Lost(path, why):
                if cure := _cure(why):
                    level = self._outage.level(f"cure of {path}", logging.WARNING)
                    _log.log(level, "%s at %s: %s%s", path, self._place, why, cure)
                listener.lost(path, why)
            case Prove(nonce):
                listener.prove(nonce)

    async def _token(self) -> "_Token":
        """The channel's token: the provider's, or the key itself where it is a JWT."""
        if self._provider is None:
            # An sb_… key is no JWT: the join takes its role from the socket.
            return _Token(None if self._key.startswith("sb_") else self._key, None)
        received = time.monotonic()
        try:
            with anyio.fail_after(self._pauses.open):
                given = self._provider()
                text = await given if isawaitable(given) else given
        except Exception as error:
            raise _NoToken(f"the token provider failed with {type(error).__name__}") from error
        life = _life_seconds(text)
        return _Token(text, None if life is None else received + 0.8 * life)

    async def _renewed(self, token: "_Token") -> "_Token":
        """The next token, or the present one for a while: it is still good when the provider fails."""
        try:
            return await self._token()
        except _NoToken as error:
            _log.warning("Realtime at %s: %s; the token is kept, asking again", self._place, error)
            return replace(token, renew_at=time.monotonic() + self._pauses.cap)

    @property
    def _may_leave_broadcast_out(self) -> bool:
        return set(self.paths) == {"broadcast", "postgres_changes"}

    def _pause(self, refusal: RefusalKind, failures: int) -> float:
        pause = backoff_seconds(failures, first=self._pauses.first, cap=self._pauses.cap, random=self._random)
        if refusal is RefusalKind.RATE:
            return self._pauses.rate + pause
        if refusal is RefusalKind.OPERATOR or (
            refusal is RefusalKind.PRIVATE and not self._may_leave_broadcast_out
        ):
            return self._pauses.operator + pause
        return pause

    def _say(self, close: Close, pause: float, *, was_live: bool) -> None:
        """Log each kind of trouble once in an outage, though its causes take turns."""
        if close.refusal in (RefusalKind.RETRY, RefusalKind.RATE):
            # The listener has told of the loss of what was live.
            level = logging.INFO if was_live else self._outage.level("no connection", logging.WARNING)
            if close.why == STILL_MISSING:
                level = logging.DEBUG
            _log.log(level, "Realtime at %s: %s; connecting again in %.1f s", self._place, close.why, pause)
            return
        # What differs in its numbers alone, such as how long ago a token expired, is the same cause.
        level = self._outage.level(_DIGITS.sub("", close.why), logging.ERROR)
        if self._leaves_broadcast_out:
            _log.log(
                level,
                "Realtime at %s: %s. Going on by postgres_changes alone, and trying broadcast again in %.0f s, then "
                "ever more rarely; `runtime doctor` tells what is missing.",
                self._place, close.why, self.mend_seconds,
            )  # fmt: skip
        elif close.refusal is RefusalKind.TOKEN:
            _log.log(
                level,
                "Realtime at %s: %s. Check the key; trying again in %.1f s.",
                self._place,
                close.why,
                pause,
            )
        else:
            _log.log(
                level, "Realtime at %s: %s. Somebody must mend this; trying again every minute.",
                self._place, close.why,
            )  # fmt: skip


class _ConnectHereOnly(connect):
    """Connects to the URL given and follows no redirect: another place would be asked in our name."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Let a redirect be a refused handshake."""
        return exc


class _NoToken(Exception):
    """The token provider gave none."""


@dataclass(frozen=True, slots=True)
class _Token:
    """A JWT for the channel, and when to get the next one, in monotonic seconds."""

    text: str | None
    renew_at: float | None


def _address(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError("SUPABASE_URL must be an http or https URL, such as https://<ref>.supabase.co.")
    scheme = "wss" if parts.scheme == "https" else "ws"
    place = parts.netloc.rpartition("@")[2]
    return f"{scheme}://{place}{parts.path.rstrip('/')}/realtime/v1/websocket", place


def _no_connection(error: Exception) -> str:
    """Why there is no connection; the libraries' own words may hold the URL, and that holds the key."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"no connection: the server's certificate is not trusted ({error.verify_message})"
        return f"{why}. {CERTIFICATE_CURE}".rstrip(".")
    if isinstance(error, InvalidProxy | ProxyError):
        return "no connection: the proxy refused (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY)"
    return f"no connection: {type(error).__name__}"


def _refused(error: InvalidStatus) -> Close:
    """A refused upgrade, told by its status and its JSON."""
    status = error.response.status_code
    try:
        problem = json.loads(error.response.body or b"")
        text = str(problem.get("error") or problem.get("message") or "") if isinstance(problem, dict) else ""
    except (ValueError, RecursionError):
        text = ""
    why = f"the handshake was refused with {status}" + (f": {text}" if text else "")
    if status == 429:
        return Close(why, RefusalKind.RATE)
    if status in (401, 403, 404):
        kind = classify(text) if text else RefusalKind.RETRY
        return Close(why, RefusalKind.OPERATOR if kind is RefusalKind.RETRY else kind)
    return Close(why)


def _cure(why: str) -> str:
    """What to look at, where the server's own words do not say it."""
    if "Unable to subscribe to changes" in why:
        return (
            ". Is the table in the publication supabase_realtime? `runtime doctor` tells, and how to mend it"
        )
    return ""


def _life_seconds(token: str) -> float | None:
    """How long a JWT lives from now by its own word; None where it does not say."""
    expiry = expiry_of(token)
    return None if expiry is None else max(1.0, expiry - time.time())
