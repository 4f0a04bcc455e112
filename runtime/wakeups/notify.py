"""How does a NOTIFY reach a worker? Over a connection of its own that only listens."""

import logging
import time
from collections import deque
from random import Random
from uuid import UUID, uuid4

import anyio

from runtime.backoff import Outage, backoff_seconds
from runtime.connection.addresses import DatabaseAddress
from runtime.settings import Settings
from runtime.wakeups import ANSWER, CANCEL, Listener, Path
from runtime.wakeups.listen import FAULTS, is_unheard, listening

_log = logging.getLogger("runtime.wakeups")
_NONCE = "nonce:"
_REMEMBERED_NONCES = 32
# Writers in stricter isolation cannot tell who sleeps: they call everybody.
EVERYBODY = "runtime_workers"
_POOLED = (
    "a transaction pooler stands in between, and LISTEN is not heard through one; use a direct connection or a "
    "session pooler, or set RUNTIME_NOTIFY=false"
)


class NotifyWakeups:
    """Wake-ups by LISTEN, for whoever has a direct connection.

    Through a transaction pooler LISTEN is not heard: that is said once, and the path stays lost.

    Args:
        url: a `postgresql://` URL.
        worker: whose wake-ups these are.
        settings: the intervals.
    """

    paths: tuple[Path, ...] = ("notify",)

    def __init__(self, url: str, worker: UUID, *, settings: Settings) -> None:
        self._address = DatabaseAddress.parse(url)
        self._channel = f"runtime_{str(worker).replace('-', '_')}"
        self._nonce_seconds = settings.nonce_seconds
        self._deadline_seconds = settings.nonce_deadline_seconds
        self._random = Random()
        self._outage = Outage()
        self._was_live = False
        self._doubted = anyio.Event()

    def doubt(self) -> None:
        """Work was found that no wake-up announced: ask for a nonce at once."""
        self._doubted.set()

    async def run(self, listener: Listener) -> None:
        """Listen for ever, reconnecting as often as needed, until cancelled."""
        failures = 0
        while True:
            began = time.monotonic()
            self._was_live = False
            try:
                why = await self._listen_once(listener)
            except FAULTS as error:
                why = f"no connection ({type(error).__name__})"
            listener.lost("notify", why)
            failures = 1 if time.monotonic() - began > self._deadline_seconds * 3 else failures + 1
            pause = backoff_seconds(failures, first=0.2, cap=10.0, random=self._random)
            if why == _POOLED:
                # Only whoever runs the database can change that.
                pause = self._nonce_seconds
            # The listener has told of the loss of what was live.
            kind = "pooled" if why == _POOLED else "no connection"
            level = logging.INFO if self._was_live else self._outage.level(kind, logging.WARNING)
            _log.log(
                level, "notify at %s is lost: %s; looking again in %.1f s", self._address.place, why, pause
            )
            await anyio.sleep(pause)

    async def _listen_once(self, listener: Listener) -> str:
        """Live through one connection and return why it ended."""
        if await is_unheard(self._address):
            return _POOLED
        heard = _Notified(listener)
        channels = (self._channel, EVERYBODY)
        async with listening(self._address, channels, heard.take, heard.end, who="notify"):
            while True:
                await self._prove(heard, listener)
                if heard.has_ended:
                    return "the connection was closed"
                if not heard.arrived.is_set():
                    return "deaf: no nonce came back in time"
                if not self._was_live:
                    self._was_live = True
                    self._outage.over()
                    _log.info("notify is live at %s", self._address.place)
                    listener.live("notify")
                self._doubted = anyio.Event()
                with anyio.move_on_after(self._nonce_seconds):
                    await self._wait_for_doubt_or_end(heard)
                if heard.has_ended:
                    return "the connection was closed"

    async def _prove(self, heard: "_Notified", listener: Listener) -> None:
        """Ask for nonces until one has come back or the deadline is over: a lost one fails no path that delivers."""
        heard.arrived = anyio.Event()
        with anyio.move_on_after(self._deadline_seconds):
            while not heard.arrived.is_set():
                nonce = uuid4().hex
                heard.expect(nonce)
                listener.prove(nonce)
                with anyio.move_on_after(self._deadline_seconds / 4):
                    await heard.arrived.wait()

    async def _wait_for_doubt_or_end(self, heard: "_Notified") -> None:
        async with anyio.create_task_group() as tasks:

            async def wait(event: anyio.Event) -> None:
                await event.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait, self._doubted)
            tasks.start_soon(wait, heard.ended)


class _Notified:
    """What came over one connection."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._expected: deque[str] = deque(maxlen=_REMEMBERED_NONCES)
        self.arrived = anyio.Event()
        self.ended = anyio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether the connection is gone."""
        return self.ended.is_set()

    def expect(self, nonce: str) -> None:
        """Take this nonce for one of ours, however late it comes."""
        self._expected.append(nonce)

    def take(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        """A notification came."""
        text = str(payload)
        if not text.startswith(_NONCE):
            self._listener.wake(text if text in (ANSWER, CANCEL) else "notify")
        elif text.removeprefix(_NONCE) in self._expected:
            self.arrived.set()

    def end(self) -> None:
        """The connection is gone: whoever waits need wait no longer."""
        self.ended.set()
        self.arrived.set()
