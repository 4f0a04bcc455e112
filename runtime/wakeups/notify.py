"""Wake-ups by NOTIFY, over a connection of their own that only listens."""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from uuid import UUID, uuid4

import anyio

from runtime.backoff import Outage
from runtime.connection.addresses import DatabaseAddress
from runtime.settings import Settings
from runtime.wakeups import ANSWER, CANCEL, DUE, Listener, Path
from runtime.wakeups.listen import CLOSED, listen_for_ever, listening

_log = logging.getLogger("runtime.wakeups")
_NONCE = "nonce:"
_REMEMBERED_NONCES = 32
# Writers in stricter isolation cannot see which workers sleep: they notify all of them.
EVERYBODY = "runtime_workers"


class NotifyWakeups:
    """Wake-ups by LISTEN, over a direct connection.

    LISTEN does not work through a transaction pooler: that is logged once, and the path stays lost.

    Args:
        url: a `postgresql://` URL.
        worker: the worker to be woken.
        settings: the intervals.
    """

    paths: tuple[Path, ...] = ("notify",)

    def __init__(self, url: str, worker: UUID, *, settings: Settings) -> None:
        self._address = DatabaseAddress.parse(url)
        self._channel = f"runtime_{str(worker).replace('-', '_')}"
        self._nonce_seconds = settings.nonce_seconds
        self._deadline_seconds = settings.nonce_deadline_seconds
        self._outage = Outage(steady_seconds=3 * self._deadline_seconds)
        self._was_live = False
        self._doubted = anyio.Event()

    def doubt(self) -> None:
        """Work was found that no wake-up announced: ask for a nonce at once."""
        self._doubted.set()

    async def run(self, listener: Listener) -> None:
        """Listen for ever, reconnecting as often as needed, until cancelled."""

        def lost(kind: str, why: str, pause: float) -> None:
            listener.lost("notify", why)
            # The listener has logged the loss of a path that was live.
            level = logging.INFO if self._was_live else self._outage.level(kind, logging.WARNING)
            _log.log(
                level, "notify at %s is lost: %s; looking again in %.1f s", self._address.place, why, pause
            )
            self._was_live = False

        await listen_for_ever(
            self._address, partial(self._listen_once, listener), lost, self._outage,
            pooled_seconds=self._nonce_seconds,
        )  # fmt: skip

    async def _listen_once(self, listener: Listener) -> str:
        """Listen on one connection and return why it ended."""
        arrivals = _Notifications(listener, self.doubt)
        channels = (self._channel, EVERYBODY)
        async with listening(self._address, channels, arrivals.take, arrivals.end, who="notify"):
            while not arrivals.has_ended:
                await self._prove(arrivals, listener)
                if arrivals.has_ended:
                    break
                if not arrivals.proved.is_set():
                    return "deaf: no nonce came back in time"
                if not self._was_live:
                    self._was_live = True
                    self._outage.over()
                    _log.info("notify is live at %s", self._address.place)
                    listener.live("notify")
                # A doubt that came up during the proof is answered by it.
                self._doubted = anyio.Event()
                with anyio.move_on_after(self._nonce_seconds):
                    await self._doubted.wait()
            return CLOSED

    async def _prove(self, arrivals: "_Notifications", listener: Listener) -> None:
        """Ask for nonces until one has come back or the deadline is over: a lost one fails no path that delivers."""
        arrivals.proved = anyio.Event()
        with anyio.move_on_after(self._deadline_seconds):
            while not arrivals.proved.is_set():
                nonce = uuid4().hex
                arrivals.expected.append(nonce)
                listener.prove(nonce)
                with anyio.move_on_after(self._deadline_seconds / 4):
                    await arrivals.proved.wait()


class _Notifications:
    """The notifications of one connection.

    Args:
        listener: woken by them.
        stop_waiting: called when the connection has ended.

    Attributes:
        expected: the nonces that were asked for, however late they come.
        proved: set when one of them has come, or when the connection has ended.
        has_ended: whether the connection is gone.
    """

    def __init__(self, listener: Listener, stop_waiting: Callable[[], object]) -> None:
        self.expected: deque[str] = deque(maxlen=_REMEMBERED_NONCES)
        self.proved = anyio.Event()
        self.has_ended = False
        self._listener = listener
        self._stop_waiting = stop_waiting

    def take(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        """A notification came."""
        text = str(payload)
        if not text.startswith(_NONCE):
            self._listener.wake(text if text in (ANSWER, CANCEL, DUE) else "notify")
        elif text.removeprefix(_NONCE) in self.expected:
            self.proved.set()

    def end(self) -> None:
        """The connection is gone."""
        self.has_ended = True
        self.proved.set()
        self._stop_waiting()
