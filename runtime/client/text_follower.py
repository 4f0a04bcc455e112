"""Following a text that a handler writes: first what is stored, then each piece as it is broadcast."""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.abc import TaskGroup

from runtime.backoff import Outage
from runtime.broadcast import text_topic
from runtime.client.factories import open_receiver
from runtime.errors import InvalidValue, StoreUnavailable, TextBroken
from runtime.settings import Settings
from runtime.store import Store

if TYPE_CHECKING:
    from runtime.wakeups.client_channel import OwnClient

_log = logging.getLogger("runtime.client.text_follower")
# The store is asked so often while nothing is heard, and so soon after a piece that does not follow on the last one.
_LOOK_SECONDS: Final = 1.0
_GAP_SECONDS: Final = 0.25
# Pieces that wait for what lies before them; of more, the first ones are read from the store.
_MAX_HEARD: Final = 1_000


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of a text.

    Attributes:
        text: its characters; none where the text was begun anew and nothing is written yet.
        offset: how many characters lie before it.
        beginning: how often the text was begun: with another number than before, what was read before it is void.
    """

    text: str
    offset: int
    beginning: int

    @property
    def end(self) -> int:
        """How many characters the text has with this piece: `since` of whoever goes on from here."""
        return self.offset + len(self.text)


class TextPosition:
    """How far a reader is in a text: it lets each character pass once.

    Args:
        since: how many characters it knows.
        beginning: of which beginning; None for whichever there is.

    Attributes:
        is_behind: a piece came that does not follow on what is known.
    """

    def __init__(self, since: int = 0, beginning: int | None = None) -> None:
        self.end = since
        self.beginning = beginning
        self.is_behind = False

    def take(self, beginning: int, offset: int, text: str) -> TextPiece | None:
        """Return what is new in a piece; None for nothing."""
        self.is_behind = False
        if self.beginning is None:
            if offset != self.end:
                self.is_behind = True
                return None
            self.beginning = beginning
        if beginning < self.beginning:
            return None
        is_anew = beginning > self.beginning
        end = 0 if is_anew else self.end
        if offset > end:
            self.is_behind = True
            return None
        new = text[end - offset :]
        if not new and not is_anew:
            return None
        self.beginning, self.end = beginning, end + len(new)
        return TextPiece(new, end, beginning)


class TextFollower:
    """Reads one text to its end.

    Args:
        store: where it is kept.
        settings: where broadcasts come from.
        message: the message whose handler writes it.
        name: its name.
        position: where to begin.
        handler: whose text it is, as `agent.handler`; None for the first that was begun.
        client: a client of the user's own, whose connection to Realtime is used.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        message: int,
        name: str,
        position: TextPosition,
        *,
        handler: str | None = None,
        client: "OwnClient | None" = None,
    ) -> None:
        self.receive = open_receiver(settings, text_topic(message), self._hear, client)
        self._store = store
        self._message = message
        self._name = name
        self._position = position
        self._handler = handler
        self._heard: deque[Mapping[str, Any]] = deque(maxlen=_MAX_HEARD)
        self._woken = anyio.Event()
        self._look_at = self._looked_at = 0.0
        self._outage = Outage()

    async def pieces(self, begin_to_hear: Callable[[], None]) -> AsyncGenerator[TextPiece]:
        """Yield what is new, until the text ends.

        Args:
            begin_to_hear: has broadcasts received; called once, and not for a text that has ended already.

        Raises:
            TextBroken: nobody writes it to its end any more.
        """
        is_hearing = False
        while True:
            self._woken = anyio.Event()
            while (piece := self._next_heard()) is not None:
                yield piece
            if (left := self._look_at - monotonic()) > 0:
                with anyio.move_on_after(left):
                    await self._woken.wait()
                continue
            if (found := await self._read()) is None:
                continue
            if found["state"] is not None:
                self._handler = found["handler"]
                read = self._position.take(found["beginning"], found["offset"], found["text"])
                if read is not None:
                    yield read
            if self._is_over(found):
                return
            if not is_hearing:
                is_hearing = True
                begin_to_hear()

    def _next_heard(self) -> TextPiece | None:
        """Return the next piece that was broadcast and follows on what is known."""
        while self._heard:
            row = self._heard[0]
            piece = self._position.take(row["beginning"], row["offset"], row["text"])
            if self._position.is_behind:
                # What lies between is stored within a second.
                self._look_at = min(self._look_at, self._looked_at + _GAP_SECONDS)
                return None
            self._heard.popleft()
            # Whatever has a state is the end, which the store knows better.
            self._look_at = 0.0 if "state" in row else monotonic() + _LOOK_SECONDS
            if piece is not None:
                return piece
        return None

    async def _read(self) -> Mapping[str, Any] | None:
        """Ask the store for what comes next; None while it is away."""
        self._looked_at = monotonic()
        try:
            found: Mapping[str, Any] = await self._store.operate(
                "stream_follow",
                message=self._message,
                name=self._name,
                since=self._position.end,
                beginning=self._position.beginning,
                handler=self._handler,
            )
        except StoreUnavailable as error:
            if self._outage.is_news(error.cause):
                _log.warning("the store is away: %s Asking again until it answers.", error)
            self._look_at = monotonic() + self._outage.pause_seconds()
            return None
        if self._outage.over():
            _log.info("the store answers again")
        self._look_at = monotonic() + _LOOK_SECONDS
        return found

    def _is_over(self, found: Mapping[str, Any]) -> bool:
        if found["state"] == "closed":
            return True
        if found["over"] and found["state"] is not None:
            raise TextBroken(
                f"The text {self._name!r} of message {self._message} ends within: its handler failed or was stopped "
                f"before it had closed the text. `runtime trace {self._message}` tells how."
            )
        return bool(found["over"])

    def _hear(self, payload: object) -> None:
        rows = payload.get("broadcasts") if isinstance(payload, Mapping) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, Mapping) and self._is_ours(row):
                self._heard.append(row)
                self._woken.set()

    def _is_ours(self, row: Mapping[str, Any]) -> bool:
        kinds: dict[str, type] = {"beginning": int, "offset": int, "text": str}
        return (
            row.get("message") == self._message
            and row.get("name") == self._name
            and self._handler in (None, row.get("handler"))
            and all(isinstance(row.get(name), kind) for name, kind in kinds.items())
        )


class TextReading:
    """The part of a stream that follows texts."""

    _store: Store
    _settings: Settings
    _tasks: TaskGroup
    _client: "OwnClient | None"

    async def follow(
        self,
        message: int,
        name: str,
        *,
        since: int = 0,
        beginning: int | None = None,
        handler: str | None = None,
    ) -> AsyncGenerator[TextPiece]:
        """Yield a text as its handler writes it with `context.stream`, each character once and in order, to its end.

        What is stored comes first, then each piece as it is broadcast; where nothing carries broadcasts, the store is
        asked once a second. It waits for a text that is not begun yet, also while its message waits for a worker. A
        text that an attempt begins anew comes from its first character again, with a higher `beginning`.

        Args:
            message: the id of the message that is handled.
            name: the text's name.
            since: how many characters are known: `end` of the last piece.
            beginning: `beginning` of that piece. Where the text was begun anew since, it comes whole.
            handler: whose text it is, as `agent.handler`, where several handlers write one of this name; by default
                the one that was begun first.

        Raises:
            TextBroken: its handler has ended without closing it, and is not run again.
            InvalidValue: `since` is no number of characters.
            StoreError: it could not be read.
        """
        if not isinstance(since, int) or since < 0:
            raise InvalidValue(f"since counts characters: 0 or more, not {since!r:.100}.")
        follower = TextFollower(
            self._store,
            self._settings,
            message,
            name,
            TextPosition(since, beginning),
            handler=handler,
            client=self._client,
        )
        scope = anyio.CancelScope()

        def begin_to_hear() -> None:
            if follower.receive is not None:
                self._tasks.start_soon(_within, scope, follower.receive)

        try:
            async for piece in follower.pieces(begin_to_hear):
                yield piece
        finally:
            scope.cancel()


async def _within(scope: anyio.CancelScope, receive: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with scope:
        await receive()
