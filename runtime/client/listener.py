"""Listening to the stream: a reader that misses nothing, and the wake-ups that say when to read."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sized
from time import monotonic
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import anyio

from runtime.backoff import Outage
from runtime.broadcast import Broadcast
from runtime.client.factories import open_broadcasts, open_wakeups
from runtime.client.wakeup_inbox import WakeupInbox
from runtime.errors import StoreUnavailable
from runtime.message import Message
from runtime.settings import Settings
from runtime.store import Store
from runtime.store.arguments import check_number
from runtime.wakeups.polling import Pace

if TYPE_CHECKING:
    from runtime.wakeups.client_channel import OwnClient

_log = logging.getLogger("runtime.client.listener")
_PAGE = 500
# A message's id is drawn before its transaction commits, so lower ids may appear later than higher ones.
_OVERLAP_SECONDS = 10.0
# How far below the newest id an open transaction may have drawn ids when a listener begins.
_OPEN_IDS = 5_000
# How many ids are remembered while a transaction stays open.
_MAX_SEEN = 100_000
_LOOK_BACK_SECONDS = 1.0
# How many broadcasts may wait for a listener that is busy.
_MAX_BROADCASTS = 10_000


class Reader:
    """Reads new messages under a pattern, a page at a time, and looks back a little, so that no late commit is missed.

    It looks back to the id up to which every transaction has ended: a row is missed only if its id was drawn by a
    statement that wrote nothing for ten seconds, or if a transaction stays open while a hundred thousand later rows
    are read.

    Args:
        store: where messages live.
        pattern: a key or a pattern.
        after: only messages with a higher id.
        horizon: the reply of `stream_horizon`, from before anything is read: where transactions are still open.
        clock: a monotonic time in seconds.
    """

    def __init__(
        self,
        store: Store,
        pattern: str,
        *,
        after: int,
        horizon: Mapping[str, int],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store = store
        self._pattern = pattern
        self._clock = clock
        self._top = after
        # Looking back begins at `_floor`. It moves to the mark when every transaction from before the mark has ended.
        self._floor = max(after, horizon["floor"])
        self._mark = horizon
        self._marked_at = self._looked_back_at = clock()
        self._look_back_seconds = _LOOK_BACK_SECONDS
        self._seen: set[int] = set()
        self._is_behind = True

    @classmethod
    async def begin(cls, store: Store, pattern: str, since: int | None) -> Self:
        """Return a reader of the messages after an id, or of those that are committed from now on.

        Raises:
            InvalidValue: `since` is no id.
        """
        since = None if since is None else check_number("since, the id of a message,", since)
        horizon = await store.operate("stream_horizon", look=_OPEN_IDS)
        if since is not None:
            return cls(store, pattern, after=since, horizon=horizon)
        reader = cls(store, pattern, after=horizon["floor"], horizon=horizon)
        await reader.pass_over()
        return reader

    async def pass_over(self) -> None:
        """Skip the messages that are there now."""
        await self._look_back()
        while self._is_behind:
            await self.fresh()

    async def fresh(self) -> list[Message[Any]]:
        """Return one page of messages that were not read before, in the order of their ids but for late commits."""
        if self._is_behind or self._clock() < self._looked_back_at + self._look_back_seconds:
            # Under load only the end is read each time, and the last seconds as seldom as possible.
            page = await self._store.read(self._pattern, after=self._top, limit=_PAGE)
            self._is_behind = len(page) == _PAGE
            if page:
                return self._note(page)
        return await self._look_back()

    async def _look_back(self) -> list[Message[Any]]:
        """Read from the lowest id on that an open transaction may still write."""
        began = self._clock()
        # Asked before the rows are read, so that every row below this horizon is among them.
        horizon = None
        if began >= self._marked_at + _OVERLAP_SECONDS:
            horizon = await self._store.operate("stream_horizon")
        fresh: list[Message[Any]] = []
        after = self._floor
        while True:
            page = await self._store.read(self._pattern, after=after, limit=_PAGE)
            is_last = len(page) < _PAGE
            self._is_behind = not is_last and page[-1].id > self._top
            fresh += [message for message in page if message.id not in self._seen]
            if is_last or self._is_behind:
                break
            after = page[-1].id
        # Noted only now: what a page brought must come again if the next one cannot be read.
        self._note(fresh)
        self._looked_back_at = self._clock()
        # The longer it takes to look back, the more seldom.
        self._look_back_seconds = max(_LOOK_BACK_SECONDS, 10 * (self._looked_back_at - began))
        if horizon is not None:
            self._move(horizon)
        return fresh

    def _move(self, horizon: Mapping[str, int]) -> None:
        """Raise the floor to the mark, if every transaction from before it has ended; then set a new mark."""
        if horizon["drawn"] < self._mark["drawn"]:
            _log.warning(
                "the ids of the stream began anew; was the database reset? Listening goes on from here"
            )
            self._top = self._floor = horizon["drawn"]
            self._seen.clear()
        elif horizon["xmin"] > self._mark["xid"]:
            self._floor = max(self._floor, self._mark["drawn"])
        elif len(self._seen) < _MAX_SEEN:
            return
        else:
            _log.warning("a transaction has been open for so long that a listener may miss what it writes")
            self._floor = max(self._floor, self._mark["drawn"])
        self._marked_at, self._mark = self._looked_back_at, horizon
        self._seen = {number for number in self._seen if number > self._floor}

    def _note(self, page: list[Message[Any]]) -> list[Message[Any]]:
        fresh = [message for message in page if message.id not in self._seen]
        self._seen.update(message.id for message in fresh)
        self._top = max(self._top, *(message.id for message in page), 0)
        return fresh


class StreamListener:
    """One listener: its wake-ups, its broadcasts, and the time of its next look."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        pattern: str,
        *,
        with_broadcasts: bool = False,
        client: "OwnClient | None" = None,
    ) -> None:
        identity = uuid4()
        # Announcements are for workers; a listener is woken by the rows themselves.
        changes_only = settings.model_copy(update={"broadcast": False, "notify": False, "webhook": None})
        self._inbox = WakeupInbox(
            store, identity, open_wakeups(changes_only, identity, [pattern], client), self._look
        )
        self.reach = self._inbox.reach
        self.pace = Pace(settings.poll_fast_seconds, settings.poll_slow_seconds)
        self.woken = anyio.Event()
        self.scope = anyio.CancelScope()
        # Broadcasts that the listener has not taken yet.
        self.broadcasts: deque[Broadcast[Any]] = deque(maxlen=_MAX_BROADCASTS)
        self._receive = (
            open_broadcasts(settings, pattern, self._take_broadcast, client) if with_broadcasts else None
        )
        self._is_due = True
        self._look_at = 0.0
        self._sweep_seconds = settings.sweep_seconds
        self._outage = Outage()

    async def run(self) -> None:
        """Listen until the scope is cancelled."""
        with self.scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._inbox.run)
                if self._receive is not None:
                    tasks.start_soon(self._receive)

    def is_due(self) -> bool:
        """Return whether to look now; if so, the next look is due at the pace of polling, or of the sweep if live."""
        now = monotonic()
        if not self._is_due and now < self._look_at:
            return False
        self._is_due = False
        self._look_at = now + (self._sweep_seconds if self.reach.is_live else self.pace.next_seconds())
        return True

    async def rest(self) -> None:
        """Wait for a wake-up, or for a broadcast, no longer than until the next look is due."""
        if not self._is_due:
            with anyio.move_on_after(self._look_at - monotonic()):
                await self.woken.wait()

    def note_read(self, fresh: Sized) -> None:
        """Note that the store was read; after new messages there may be more at once."""
        if self._outage.over():
            _log.info("the store answers again")
        if fresh:
            self.pace.active()
            self._is_due = True

    def note_away(self, error: StoreUnavailable) -> None:
        """Log once for each cause that the store cannot be read now."""
        if self._outage.is_news(error.cause):
            _log.warning("the store is away: %s Asking again until it answers.", error)

    def _take_broadcast(self, broadcast: Broadcast[Any]) -> None:
        # When it is full the oldest is dropped; the numbers of the others show that.
        self.broadcasts.append(broadcast)
        self.woken.set()

    def _look(self) -> None:
        self._is_due = True
        self.woken.set()
