"""Sending broadcasts: those of one moment go out in one frame and are kept nowhere.

Over Realtime a frame is one request to its HTTP broadcast, to private topics: all broadcasts go to one, and those
under each key to another, so that a listener to one key gets those alone. With only a direct connection a frame is
one NOTIFY. Each frame is sent once; only one that Realtime refuses to take now is sent again.
"""

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import anyio

from runtime.broadcast import EVENT, TOPIC, is_text_topic, topic_of
from runtime.connection.proxies import request_options
from runtime.encoding.json import encode
from runtime.errors import InvalidValue, SettingsError, StoreError
from runtime.store import Store

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger("runtime.client.broadcaster")
_MAX_WAITING_BYTES = 2_000_000
_LONGEST_GATHER_SECONDS = 2.0
_WARN_SECONDS = 10.0

NO_TRANSPORT = (
    "Nothing carries broadcasts. Set SUPABASE_URL and a key, with RUNTIME_BROADCAST on: then Realtime does; or "
    "DATABASE_URL, with RUNTIME_NOTIFY on: then NOTIFY does."
)

Entry = tuple[str, str]
"""A key, and the JSON of one broadcast under it; or the topic of a text, and the JSON of a piece of it."""

NextPieces = Callable[[int], tuple[list[Entry], bool]]
"""Takes how many bytes have room; returns pieces of texts, and whether there is more that may not go out yet."""


class BroadcastRateLimited(Exception):
    """The frame was refused: too much was sent of late."""


class BroadcastUndelivered(Exception):
    """The frame may not have arrived; the text says why."""


class BroadcastTransport(Protocol):
    """A carrier of frames."""

    max_bytes: int
    """How large one broadcast may be."""
    frame_bytes: int
    """How large a frame may be."""

    async def send(self, entries: Sequence[Entry]) -> None:
        """Send one frame, once.

        Raises:
            BroadcastRateLimited: it was not taken, and may be sent again.
            BroadcastUndelivered: it may not have arrived.
        """

    async def close(self) -> None:
        """Close connections."""


class Broadcaster:
    """Gathers broadcasts and sends them. It lives on one loop; `send` may be called from any thread.

    Args:
        transport: carries frames.
        gather_seconds: how long to gather between two frames; longer while Realtime takes no more.

    Attributes:
        counts: `broadcasts` taken, `frames` sent, broadcasts `dropped`, `pieces` of texts sent.
        next_pieces: asked for pieces of texts when a frame is made, so that the slower frames go, the larger they are.
    """

    def __init__(self, transport: BroadcastTransport, gather_seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        self.next_pieces: NextPieces | None = None
        self._transport = transport
        self._shortest = self._gather = gather_seconds
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: deque[Entry] = deque()
        self._waiting_bytes = 0
        self._is_scheduled = self._is_sending = False
        self._filled = anyio.Event()
        self._flushed = anyio.Event()
        self._dropped = 0
        self._warned_at = -_WARN_SECONDS

    def send(self, key: str, text: str) -> None:
        """Have one broadcast sent with the next frame. From any thread.

        Raises:
            InvalidValue: it is too large.
        """
        size = len(text.encode())
        if size > self._transport.max_bytes:
            raise InvalidValue(
                f"A broadcast may have {self._transport.max_bytes:,} bytes as JSON, not {size:,}: send less at a time, "
                "or emit it as a message."
            )
        with self._lock:
            if self._waiting_bytes + size > _MAX_WAITING_BYTES:
                # Its number is used up, so listeners see that something is missing.
                self._dropped += 1
                self.counts["dropped"] += 1
                return
            self._waiting.append((key, text))
            self._waiting_bytes += size
            self.counts["broadcasts"] += 1
        self.call()

    @property
    def max_bytes(self) -> int:
        """How large one broadcast may be."""
        return self._transport.max_bytes

    def call(self) -> None:
        """Have a frame made soon. From any thread."""
        with self._lock:
            was_scheduled, self._is_scheduled = self._is_scheduled, True
        if not was_scheduled:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(lambda: self._filled.set())

    async def run(self) -> None:
        """Send frames until cancelled."""
        try:
            while True:
                await self._filled.wait()
                self._is_sending = True
                entries, has_more = self._take()
                if entries:
                    await self._send_one(entries)
                self._is_sending = False
                if has_more or self._waiting:
                    self.call()
                elif not self._is_scheduled:
                    self._flushed.set()
                await anyio.sleep(self._gather)
        finally:
            with anyio.CancelScope(shield=True):
                await self._transport.close()

    async def flush(self, *, seconds: float = 2.0) -> None:
        """Return when everything is sent, or so many seconds are over."""
        with anyio.move_on_after(seconds):
            while self._is_scheduled or self._is_sending:
                self._flushed = anyio.Event()
                await self._flushed.wait()

    def _take(self) -> tuple[list[Entry], bool]:
        """Take as many broadcasts as fit into one frame, in order, and pieces of texts for the rest of it."""
        taken: list[Entry] = []
        size = 0
        with self._lock:
            # Whatever is written from here on calls again.
            self._is_scheduled = False
            self._filled = anyio.Event()
            # Each is followed by a comma.
            while self._waiting and size + len(self._waiting[0][1].encode()) < self._transport.frame_bytes:
                taken.append(self._waiting.popleft())
                size += len(taken[-1][1].encode()) + 1
            self._waiting_bytes -= size - len(taken)
        if self.next_pieces is None:
            return taken, False
        pieces, has_more = self.next_pieces(self._transport.frame_bytes - size)
        self.counts["pieces"] += len(pieces)
        return taken + pieces, has_more

    async def _send_one(self, entries: list[Entry]) -> None:
        try:
            await self._transport.send(entries)
        except BroadcastRateLimited:
            self._put_back(entries)
            self._gather = min(_LONGEST_GATHER_SECONDS, max(0.1, self._gather * 2))
            self._complain("Realtime takes no more just now: broadcasts are gathered for longer")
        except BroadcastUndelivered as error:
            self.counts["dropped"] += len(entries)
            self._complain(f"broadcasts may not have arrived: {error}")
        else:
            self.counts["frames"] += 1
            self._gather = max(self._shortest, self._gather * 0.8)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._complain(f"{dropped} broadcasts were dropped: too much was waiting to be sent")

    def _put_back(self, entries: Sequence[Entry]) -> None:
        with self._lock:
            self._waiting.extendleft(reversed(entries))
            self._waiting_bytes += sum(len(text.encode()) for _, text in entries)

    def _complain(self, what: str) -> None:
        """Log a warning, no more often than every few seconds."""
        if self._loop.time() >= self._warned_at + _WARN_SECONDS:
            self._warned_at = self._loop.time()
            _log.warning("%s", what)


@dataclass
class RealtimeTransport:
    """Frames over the HTTP broadcast of Supabase Realtime.

    Args:
        url: the project's URL.
        key: the service_role JWT or an `sb_secret_…` key.
        request_seconds: how long one request may take.
    """

    url: str
    key: str = field(repr=False)
    request_seconds: float = 15.0
    max_bytes: int = 64_000
    # Below the 256 kB of the smallest plan.
    frame_bytes: int = 200_000
    _client: "httpx.AsyncClient | None" = field(default=None, init=False, repr=False)

    async def send(self, entries: Sequence[Entry]) -> None:
        """Send one request: broadcasts to the common topic and to that of their key, pieces of texts to theirs."""
        import httpx

        by_topic: dict[str, list[str]] = {}
        for key, text in entries:
            for topic in (key,) if is_text_topic(key) else (TOPIC, topic_of(key)):
                by_topic.setdefault(topic, []).append(text)
        messages = ",".join(
            f'{{"topic":{encode(topic)},"event":"{EVENT}","private":true,"payload":{{"broadcasts":[{",".join(texts)}]}}}}'
            for topic, texts in by_topic.items()
        )
        if self._client is None:
            headers = {"apikey": self.key, "Content-Type": "application/json"}
            if not self.key.startswith("sb_"):
                headers["Authorization"] = f"Bearer {self.key}"
            self._client = httpx.AsyncClient(
                headers=headers, timeout=self.request_seconds, **request_options(self.url)
            )
        try:
            with anyio.fail_after(self.request_seconds):
                answer = await self._client.post(
                    f"{self.url}/realtime/v1/api/broadcast", content=f'{{"messages":[{messages}]}}'.encode()
                )
        except (httpx.HTTPError, TimeoutError) as error:
            raise BroadcastUndelivered(f"Realtime did not answer ({type(error).__name__})") from None
        if answer.status_code == 429:
            raise BroadcastRateLimited
        if answer.status_code in (401, 403):
            raise BroadcastUndelivered(
                "Realtime refused the key. Is it the service_role key of this project?"
            )
        if not answer.is_success:
            raise BroadcastUndelivered(f"Realtime answered {answer.status_code}")

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.aclose()


@dataclass
class NotifyTransport:
    """Frames by NOTIFY, for a direct connection without Realtime.

    Args:
        store: the direct store.
    """

    store: Store
    max_bytes: int = 7_000
    # PostgreSQL takes less than 8,000 bytes.
    frame_bytes: int = 7_900

    async def send(self, entries: Sequence[Entry]) -> None:
        """Send one notification."""
        texts = ",".join(text for _, text in entries)
        try:
            await self.store.operate("stream_broadcast", payload=f'{{"broadcasts":[{texts}]}}')
        except StoreError as error:
            raise BroadcastUndelivered(str(error)) from None

    async def close(self) -> None:
        """Do nothing: the store belongs to the caller."""


def refuse_broadcast(_key: str, _text: str) -> None:
    """Refuse a broadcast that nothing carries.

    Raises:
        SettingsError: always.
    """
    raise SettingsError(NO_TRANSPORT)
