"""How does a script write to the stream and read it? Three lines, no agent needed."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup

from runtime.connections import open_store, open_wakeups
from runtime.errors import StoreUnavailable
from runtime.keys import check_key, check_pattern
from runtime.message import Draft, Message, Priority
from runtime.operations import Operations
from runtime.settings import Settings
from runtime.store import Sent, Store
from runtime.wakeups import Path, Reach
from runtime.wakeups.polling import Pace

if TYPE_CHECKING:
    from supabase import AsyncClient

_PAGE = 500
# A message's id is drawn before its transaction commits, so lower ids may appear later than higher ones.
_OVERLAP_SECONDS = 10.0


@asynccontextmanager
async def connect(
    settings: Settings | None = None, *, client: "AsyncClient | None" = None
) -> AsyncIterator["Stream"]:
    """Open the stream the settings name, the environment's if none are given.

    Args:
        settings: where the stream is; read from the environment by default.
        client: a supabase async client of your own, used for everything but wake-ups.

    Raises:
        SettingsError: nothing says where the stream is.
    """
    settings = settings or Settings.load()
    store = await open_store(settings, client)
    try:
        async with anyio.create_task_group() as tasks:
            yield Stream(store, settings, tasks)
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()


class Stream:
    """The shared table, as scripts use it."""

    def __init__(self, store: Store, settings: Settings, tasks: TaskGroup) -> None:
        self._store = store
        self._settings = settings
        # Listeners' sockets live here and not in the generators, which may be left without being closed.
        self._tasks = tasks

    def __repr__(self) -> str:
        return f"<Stream at {self.place}>"

    @property
    def place(self) -> str:
        """Where the stream is, for people: a host and port, never a secret."""
        return self._store.place

    async def send(
        self,
        key: str,
        value: object = None,
        *,
        agent: str | None = None,
        delay: float | None = None,
        expires_in: float | None = None,
        priority: Priority = Priority.NORMAL,
        dedup_key: str | None = None,
        correlation_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Sent:
        """Write one message; every agent with a handler for its key is woken.

        Args:
            key: dotted name, such as task.output.
            value: anything that has a JSON form.
            agent: the writer's name.
            delay: seconds until it is due.
            expires_in: seconds after which nobody wants it any more.
            priority: the class it waits in.
            dedup_key: stored once within the dedup retention; then a lost answer does no harm either.
            correlation_id: what it belongs to.
            headers: whatever should travel beside the value.

        Returns:
            Its id, or the id of the message that was stored before under the same dedup_key.

        Raises:
            InvalidKey: `key` is not a key.
            InvalidValue: the value cannot be stored.
            StoreError: it was not stored.
        """
        draft = Draft(
            key,
            value,
            agent=agent,
            delay=delay,
            expires_in=expires_in,
            priority=priority,
            dedup_key=dedup_key,
            correlation_id=correlation_id,
            headers=headers,
        )
        return (await self.send_all([draft]))[0]

    async def send_all(self, drafts: list[Draft]) -> list[Sent]:
        """Write several messages in their order, in one transaction: all of them or none."""
        return await self._store.send(drafts)

    async def read(
        self, pattern: str, *, after: int | None = None, before: int | None = None, limit: int = 100
    ) -> list[Message[Any]]:
        """Return messages by pattern in the order of their ids: the oldest after an id, else the newest.

        Args:
            pattern: a key, or a pattern such as task.*.
            after: only messages with a higher id.
            before: only messages with a lower id.
            limit: how many at most, up to 10,000.
        """
        return await self._store.read(check_pattern(pattern), after=after, before=before, limit=limit)

    async def latest(self, key: str) -> Message[Any] | None:
        """Return the newest message under a key, or None."""
        found = await self._store.read(check_key(key), limit=1)
        return found[0] if found else None

    async def latest_of_each(self, pattern: str, *, limit: int = 1000) -> list[Message[Any]]:
        """Return the newest message of each key that matches, the newest first."""
        return await self._store.read(check_pattern(pattern), limit=limit, latest=True)

    async def listen(self, pattern: str, *, since: int | None = None) -> AsyncIterator[Message[Any]]:
        """Yield messages as they are written, for ever.

        Nothing is kept for a listener: what is written while it is away is read only with `since`.

        Args:
            pattern: a key, or a pattern such as site.>.
            since: begin with the messages after this id; by default with those written from now on.
        """
        check_pattern(pattern)
        reader = _Reader(self._store, pattern, await self._newest_id() if since is None else since)
        listening = Listening(self._settings, self._store, pattern)
        self._tasks.start_soon(listening.run)
        try:
            while True:
                listening.woken = anyio.Event()
                fresh = await reader.fresh()
                for message in fresh:
                    yield message
                if fresh:
                    listening.pace.active()
                else:
                    await listening.rest()
        finally:
            listening.scope.cancel()

    @property
    def operations(self) -> Operations:
        """What an operator does: pause, replay, redrive and so on."""
        return Operations(self._store)

    async def stats(self) -> dict[str, Any]:
        """Return what is there and what waits: subscriptions, deliveries, workers."""
        found: dict[str, Any] = await self._store.operate("stream_stats")
        return found

    async def _newest_id(self) -> int:
        newest = await self._store.read(">", limit=1)
        return newest[0].id if newest else 0


class _Reader:
    """Reads what is new, again over a short overlap, so that a late commit is not missed."""

    def __init__(self, store: Store, pattern: str, after: int) -> None:
        self._store = store
        self._pattern = pattern
        self._floor = after
        self._seen: dict[int, float] = {}

    async def fresh(self) -> list[Message[Any]]:
        now = monotonic()
        old = [number for number, seen_at in self._seen.items() if seen_at < now - _OVERLAP_SECONDS]
        if old:
            self._floor = max(old)
            self._seen = {number: at for number, at in self._seen.items() if number > self._floor}
        fresh: list[Message[Any]] = []
        after = self._floor
        while True:
            page = await self._store.read(self._pattern, after=after, limit=_PAGE)
            fresh += [message for message in page if message.id not in self._seen]
            if len(page) < _PAGE:
                break
            after = page[-1].id
        for message in fresh:
            self._seen[message.id] = now
        return fresh


class Listening:
    """Whom the wake-ups of one listener tell: they only end its rest."""

    def __init__(self, settings: Settings, store: Store, pattern: str) -> None:
        self._id = uuid4()
        self._store = store
        changes_only = settings.model_copy(update={"broadcast": False, "notify": False, "webhook": None})
        self.wakeups = open_wakeups(changes_only, self._id, [pattern])
        self.reach = Reach(frozenset(path for source in self.wakeups for path in source.paths))
        self.pace = Pace(settings.poll_fast_seconds, settings.poll_slow_seconds)
        self.woken = anyio.Event()
        self.scope = anyio.CancelScope()
        self._sweep_seconds = settings.sweep_seconds
        self._nonces: list[str] = []

    async def run(self) -> None:
        """Listen until the scope is cancelled."""
        with self.scope:
            async with anyio.create_task_group() as tasks:
                for source in self.wakeups:
                    tasks.start_soon(source.run, self)

    async def rest(self) -> None:
        """Wait for a wake-up, no longer than the pace of polling, or of the sweep while a path is live."""
        await self._prove()
        seconds = self._sweep_seconds if self.reach.is_live else self.pace.next_seconds()
        with anyio.move_on_after(seconds):
            await self.woken.wait()

    async def _prove(self) -> None:
        while self._nonces:
            nonce = self._nonces.pop()
            try:
                await self._store.operate("stream_beat", worker=str(self._id), nonce=nonce)
            except StoreUnavailable:
                # The nonce's deadline passes, and the path counts as deaf: polling goes on.
                return

    def wake(self, why: str, message: int | None = None) -> None:
        """Read now."""
        self.woken.set()

    def live(self, path: Path) -> None:
        """Read once, then wait for wake-ups."""
        self.reach.live(path)
        self.woken.set()

    def gap(self, path: Path, why: str) -> None:
        """Read now."""
        self.woken.set()

    def lost(self, path: Path, why: str) -> None:
        """Poll."""
        self.reach.lost(path)
        self.woken.set()

    def prove(self, nonce: str) -> None:
        """Send the nonce through the database."""
        self._nonces.append(nonce)
        self.woken.set()
