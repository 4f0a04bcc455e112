"""What is new in the stream? A reader that misses nothing, and the wake-ups that tell it when to look."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Self
from uuid import uuid4

import anyio

from runtime.broadcast import Broadcast
from runtime.client.factories import open_broadcasts, open_wakeups
from runtime.client.wakeup_inbox import WakeupInbox
from runtime.errors import StoreUnavailable
from runtime.message import Message
from runtime.settings import Settings
from runtime.store import Store
from runtime.wakeups.polling import Pace

_log = logging.getLogger("runtime.client.stream")
_PAGE = 500
# A message's id is drawn before its transaction commits, so lower ids may appear later than higher ones.
_OVERLAP_SECONDS = 10.0
# How far below the newest id a transaction may stand that is still open when a listener begins.
_OPEN_IDS = 5_000
# How many ids are remembered while a transaction stays open.
_MAX_SEEN = 100_000
_LOOK_BACK_SECONDS = 1.0
# How many broadcasts may wait for a listener that is busy.
_MAX_BROADCASTS = 10_000


class Reader:
    """Reads what is new under a pattern, a page at a time, and looks back a little, so that no late commit is missed.

    It looks back to where everything is decided: a row is missed only if its id was drawn by a statement that wrote
    nothing for ten seconds, or if a transaction stays open while a hundred thousand later rows are read.

    Args:
        store: where messages live.
        pattern: which ones.
        after: only messages with a higher id.
        horizon: up to where the stream was decided before anything is read, as `stream_horizon` tells it.
        clock: seconds that never go back.
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
        # Looking back begins at `_floor`. It moves to the mark when all that had begun before the mark has ended.
        self._floor = max(after, horizon["floor"])
        self._mark = horizon
        self._marked_at = self._looked_back_at = clock()
        self._look_back_seconds = _LOOK_BACK_SECONDS
        self._seen: set[int] = set()
        self._is_behind = True

    @classmethod
    async def begin(cls, store: Store, pattern: str, since: int | None) -> Self:
        """A reader of what comes after an id, or else of what is committed from now on."""
        horizon = await store.operate("stream_horizon", look=_OPEN_IDS)
        if since is not None:
            return cls(store, pattern, after=since, horizon=horizon)
        reader = cls(store, pattern, after=horizon["floor"], horizon=horizon)
        await reader.pass_over()
        return reader

    async def pass_over(self) -> None:
        """Read what is there now, and yield none of it."""
        await self._look_back()
        while self._is_behind:
            await self.fresh()

    async def fresh(self) -> list[Message[Any]]:
        """One page of what was not read before; late ones come when they come, else in the order of their ids."""
        if self._is_behind or self._clock() < self._looked_back_at + self._look_back_seconds:
            # Under load only the end is read each time, and the last seconds not more often than need be.
            page = await self._store.read(self._pattern, after=self._top, limit=_PAGE)
            self._is_behind = len(page) == _PAGE
            if page:
                return self._note(page)
        return await self._look_back()

    async def _look_back(self) -> list[Message[Any]]:
        """Read from the lowest id on that may still turn up."""
        began = self._clock()
        # Asked before the rows are read: what it calls decided is then seen by the reading.
        horizon = None
        if began >= self._marked_at + _OVERLAP_SECONDS:
            horizon = await self._store.operate("stream_horizon")
        fresh: list[Message[Any]] = []
        after = self._floor
        while True:
            page = await self._store.read(self._pattern, after=after, limit=_PAGE)
            is_last = len(page) < _PAGE
            self._is_behind = not is_last and page[-1].id > self._top
            fresh += self._note(page)
            if is_last or self._is_behind:
                break
            after = page[-1].id
        self._looked_back_at = self._clock()
        # The more there is to look at again, the more seldom.
        self._look_back_seconds = max(_LOOK_BACK_SECONDS, 10 * (self._looked_back_at - began))
        if horizon is not None:
            self._move(horizon)
        return fresh

    def _move(self, horizon: Mapping[str, int]) -> None:
        """Raise the floor to the mark, if everything up to there is decided and read; then mark where we are now."""
        if horizon["drawn"] < self._mark["drawn"]:
            _log.warning("the stream has begun anew; was the database reset? Listening goes on from here")
            self._top = self._floor = horizon["drawn"]
        elif horizon["xmin"] > self._mark["xid"]:
            self._floor = max(self._floor, self._mark["drawn"])
        elif len(self._seen) < _MAX_SEEN:
            return
        else:
            _log.warning("a transaction has been open for so long that what it writes may pass a listener by")
            self._floor = max(self._floor, self._mark["drawn"])
        self._marked_at, self._mark = self._looked_back_at, horizon
        self._seen = {number for number in self._seen if number > self._floor}

    def _note(self, page: list[Message[Any]]) -> list[Message[Any]]:
        fresh = [message for message in page if message.id not in self._seen]
        self._seen.update(message.id for message in fresh)
        self._top = max(self._top, *(message.id for message in page), 0)
        return fresh


class Listening:
    """Whom the wake-ups of one listener tell: they only end its rest."""

    def __init__(
        self, settings: Settings, store: Store, pattern: str, *, with_broadcasts: bool = False
    ) -> None:
        identity = uuid4()
        # Announcements are for workers; a listener hears of the rows themselves.
        changes_only = settings.model_copy(update={"broadcast": False, "notify": False, "webhook": None})
        self._inbox = WakeupInbox(
            store, identity, open_wakeups(changes_only, identity, [pattern]), self._look
        )
        self.reach = self._inbox.reach
        self.pace = Pace(settings.poll_fast_seconds, settings.poll_slow_seconds)
        self.woken = anyio.Event()
        self.scope = anyio.CancelScope()
        # Broadcasts that the listener has not taken yet.
        self.broadcasts: deque[Broadcast[Any]] = deque(maxlen=_MAX_BROADCASTS)
        self._receive = open_broadcasts(settings, pattern, self._take_broadcast) if with_broadcasts else None
        self._is_due = True
        self._look_at = 0.0
        self._sweep_seconds = settings.sweep_seconds
        self._is_away = False

    async def run(self) -> None:
        """Listen until the scope is cancelled."""
        with self.scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._inbox.run)
                if self._receive is not None:
                    tasks.start_soon(self._receive)

    def is_due(self) -> bool:
        """Whether to look now; from then on the next look is due at the pace of polling, or of the sweep if live."""
        now = monotonic()
        if not self._is_due and now < self._look_at:
            return False
        self._is_due = False
        self._look_at = now + (self._sweep_seconds if self.reach.is_live else self.pace.next_seconds())
        return True

    def look_again(self) -> None:
        """Something was there: there may be more."""
        self.pace.active()
        self._is_due = True

    async def rest(self) -> None:
        """Wait for a wake-up, or for a broadcast, no longer than until the next look is due."""
        if not self._is_due:
            with anyio.move_on_after(self._look_at - monotonic()):
                await self.woken.wait()

    def say_away(self, error: StoreUnavailable) -> None:
        """Log once that nothing can be read now."""
        if not self._is_away:
            self._is_away = True
            _log.warning("the store is away: %s Asking again until it answers.", error)

    def say_back(self) -> None:
        """Log once that it can be read again."""
        if self._is_away:
            self._is_away = False
            _log.info("the store answers again")

    def _take_broadcast(self, broadcast: Broadcast[Any]) -> None:
        # With no more room the oldest is dropped: its number tells that it is missing.
        self.broadcasts.append(broadcast)
        self.woken.set()

    def _look(self) -> None:
        self._is_due = True
        self.woken.set()
