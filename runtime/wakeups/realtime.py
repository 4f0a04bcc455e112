"""A driver that carries a Realtime channel over `websockets` and reconnects for ever."""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from uuid import UUID

import anyio
from websockets.exceptions import ConnectionClosed

from runtime.backoff import Outage, backoff_seconds
from runtime.settings import Settings
from runtime.wakeups import Listener, Path
from runtime.wakeups.effects import Close, Effect, Gap, Live, Lost, Prove, RefusalKind, Send, Wake
from runtime.wakeups.phoenix import STILL_MISSING, PhoenixChannel, Timings
from runtime.wakeups.realtime_socket import (
    ChannelSocket,
    ChannelToken,
    Endpoint,
    NotOpened,
    RealtimeEndpoint,
    TokenProvider,
)

_log = logging.getLogger("runtime.wakeups")
_DIGITS = re.compile("[0-9]+")
Tell = Callable[[Effect], None]
"""Takes the effects that are not the driver's own."""


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
        worker: the worker to be woken.
        keys: the patterns of its handlers.
        settings: which paths to use, and the intervals.
        token: returns a JWT for the channel, asked before each connection and before the JWT expires; by default the
            key itself is used, if it is a JWT.
        timings: the channel's intervals; by default those of the settings.
        pauses: the driver's.
        endpoint: the server, if it is reached in another way than by a socket of the runtime's own.

    Attributes:
        counts: of the socket that is open, or was last: frames by kind, and the proofs of each path.

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
        endpoint: Endpoint | None = None,
    ) -> None:
        wanted: dict[Path, bool] = {
            "broadcast": settings.broadcast,
            "postgres_changes": settings.postgres_changes,
        }
        self.paths: tuple[Path, ...] = tuple(path for path, is_on in wanted.items() if is_on)
        self._pauses = pauses or Pauses()
        self._endpoint: Endpoint = endpoint or RealtimeEndpoint(
            url, key, token, open_seconds=self._pauses.open, close_seconds=self._pauses.close
        )
        self._place = self._endpoint.place
        self._worker = worker
        self._patterns = keys
        self._timings = timings or Timings(
            heartbeat=settings.heartbeat_seconds,
            nonce=settings.nonce_seconds,
            nonce_deadline=settings.nonce_deadline_seconds,
        )
        self._random = Random()
        self._doubts = False
        self._leaves_broadcast_out = False
        self._resting: anyio.CancelScope | None = None
        self._outage = Outage()
        # How often the channel has started over for a path that was missing while another one was live.
        self._mends = 0
        self.counts: Counter[str] = Counter()

    def doubt(self) -> None:
        """Work was found that no wake-up announced: ask for a nonce at once."""
        self._doubts = True
        if self._resting is not None:
            self._resting.cancel()

    @property
    def mend_seconds(self) -> float:
        """How long the next channel leaves a missing path alone before it starts over.

        A path that went missing with a thaw or a restart is back in seconds; one that stays away is tried ever more
        rarely.
        """
        return min(self._timings.mend, self._timings.first_mend * 2.0 ** min(self._mends, 10))

    async def run(self, listener: Listener) -> None:
        """Listen for ever, reconnecting as often as needed, until cancelled."""
        await self._keep_open(partial(self._pass_on, listener))

    async def listen_once(self, listener: Listener) -> Close:
        """Listen on one socket and return why it ended."""
        return await self._hold_open(self._channel(), partial(self._pass_on, listener))

    async def _keep_open(self, tell: Tell) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            channel = self._channel()
            close = await self._hold_open(channel, tell)
            self._mends = 0 if channel.is_whole else self._mends + channel.is_proved
            # A server that accepts and hangs up at once must not be called in a tight loop.
            if time.monotonic() - began >= self._pauses.stable:
                failures = 0
            failures += 1
            self._leaves_broadcast_out = (
                close.refusal is RefusalKind.PRIVATE and self._may_leave_broadcast_out
            )
            pause = self._pause(close.refusal, failures)
            self._say(close, pause, was_live=channel.is_proved)
            await anyio.sleep(pause)

    async def _hold_open(self, channel: PhoenixChannel, tell: Tell) -> Close:
        """Carry a channel over one socket and return why it ended."""
        self.counts = channel.counts
        try:
            token = await self._endpoint.token()
            socket = await self._endpoint.open()
        except NotOpened as error:
            return error.close
        try:
            close = await self._converse(socket, channel, token, tell)
        except ConnectionClosed as error:
            received = error.rcvd
            close = Close(f"the socket was closed with code {received.code if received else 1006}")
        except TimeoutError:
            close = Close("the server takes no frames")
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._pauses.close):
                await socket.close()
        # After a cancellation this is skipped: nobody listens any more.
        for effect in channel.end(close.why):
            _tell_safely(tell, effect)
        return close

    def _channel(self) -> PhoenixChannel:
        """The channel of the next socket."""
        is_partial = self._leaves_broadcast_out
        paths = tuple(path for path in self.paths if path != "broadcast") if is_partial else self.paths
        return PhoenixChannel(
            self._worker, self._patterns, paths, self._timings, is_partial, self.mend_seconds
        )

    async def _converse(
        self, socket: ChannelSocket, channel: PhoenixChannel, token: ChannelToken, tell: Tell
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
                    _tell_safely(tell, effect)
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

    async def _next(self, socket: ChannelSocket, channel: PhoenixChannel, seconds: float) -> list[Effect]:
        """Return the effects of the next frame, or none when the time is over or a doubt came up."""
        with anyio.move_on_after(seconds) as self._resting:
            frame = await socket.recv()
            return channel.receive(frame, time.monotonic())
        return []

    def _pass_on(self, listener: Listener, effect: Effect) -> None:
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

    async def _renewed(self, token: ChannelToken) -> ChannelToken:
        """Return the next token, or keep the present one for a while if the provider fails: it is still valid."""
        try:
            return await self._endpoint.token()
        except NotOpened as error:
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
        """Log each kind of trouble once in an outage, even if its causes alternate."""
        if close.refusal in (RefusalKind.RETRY, RefusalKind.RATE):
            # The listener has logged the loss of a path that was live.
            level = logging.INFO if was_live else self._outage.level("no connection", logging.WARNING)
            if close.why == STILL_MISSING:
                level = logging.DEBUG
            _log.log(level, "Realtime at %s: %s; connecting again in %.1f s", self._place, close.why, pause)
            return
        # Causes that differ in numbers alone, such as how long ago a token expired, are the same cause.
        level = self._outage.level(_DIGITS.sub("", close.why), logging.ERROR)
        if self._leaves_broadcast_out:
            _log.log(
                level,
                "Realtime at %s: %s. Going on by postgres_changes alone, and trying broadcast again in %.0f s, then "
                "ever more rarely; `runtime doctor` says what is missing.",
                self._place, close.why, self.mend_seconds,
            )  # fmt: skip
        elif close.refusal is RefusalKind.TOKEN:
            _log.log(
                level, "Realtime at %s: %s. Check the key; trying again in %.1f s.",
                self._place, close.why, pause,
            )  # fmt: skip
        else:
            _log.log(
                level, "Realtime at %s: %s. It needs mending: see `runtime doctor`. Trying again every minute.",
                self._place, close.why,
            )  # fmt: skip


def _tell_safely(tell: Tell, effect: Effect) -> None:
    """Pass an effect on; a listener that raises must not end the conversation."""
    try:
        tell(effect)
    except Exception:  # noqa: BLE001 - the error is the listener's and is logged; the socket goes on
        _log.exception("the listener failed on %s; listening goes on", type(effect).__name__)


def _cure(why: str) -> str:
    """What to look at, if the server's own text does not say it."""
    if "Unable to subscribe to changes" in why:
        return (
            ". Is the table in the publication supabase_realtime? `runtime doctor` tells, and how to mend it"
        )
    return ""
