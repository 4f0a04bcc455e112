"""The stream as scripts use it: send, ask, broadcast, read and listen, without an agent."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup

from runtime.agent.known_options import takes_known_options
from runtime.agent.services import AskOptions, ReadOptions
from runtime.broadcast import Broadcast, BroadcastSequence
from runtime.client.admin import Admin
from runtime.client.broadcaster import NO_TRANSPORT, Broadcaster
from runtime.client.factories import open_broadcaster, open_store, open_telemetry, own_client, settings_of
from runtime.client.listener import Reader, StreamListener
from runtime.client.queries import Queries
from runtime.client.requester import Requester
from runtime.client.text_follower import TextReading
from runtime.client.unheard import UnheardKeys
from runtime.errors import SettingsError, StoreUnavailable
from runtime.keys import check_key, check_pattern
from runtime.message import Answer, Draft, Message, Priority, check_dedup_key
from runtime.settings import Settings
from runtime.store import Sent, Store

if TYPE_CHECKING:
    from runtime.wakeups.client_channel import OwnClient
    from supabase import AsyncClient

_log = logging.getLogger("runtime.client.stream")


@takes_known_options
@asynccontextmanager
async def connect(
    settings: Settings | None = None, *, client: "AsyncClient | None" = None
) -> AsyncIterator["Stream"]:
    """Open the stream that the settings name.

    Args:
        settings: where the stream is; read from the environment by default.
        client: a supabase async client of your own, used for every request and, over its Realtime connection, for
            wake-ups; it says where the stream is, and stays open. Without one, both are the runtime's own.

    Raises:
        SettingsError: nothing says where the stream is.
    """
    if not isinstance(settings, Settings | None):
        raise SettingsError(
            f"connect(settings) takes Settings, not {type(settings).__name__}: a client is given as connect(client=…)."
        )
    settings = settings or Settings.find()
    store = await open_store(settings, client)
    if client is not None:
        settings = settings_of(client, settings)
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            stream = Stream(store, settings, tasks, own_client(client))
            try:
                yield stream
            except Exception as error:  # noqa: BLE001 - raised again below, outside of the group, so that it is no group
                failure = error
            await stream.flush_broadcasts()
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()
    if failure is not None:
        raise failure


class Stream(TextReading):
    """The shared table, as scripts use it."""

    def __init__(
        self, store: Store, settings: Settings, tasks: TaskGroup, client: "OwnClient | None" = None
    ) -> None:
        self._client = client
        self._store = store
        self._settings = settings
        # Listeners' sockets live in these tasks and not in the generators, which may be left without being closed.
        self._tasks = tasks
        self._telemetry = open_telemetry(settings)
        self._unheard = UnheardKeys(_log)
        self._requester: Requester | None = None
        self._broadcaster: Broadcaster | None = None
        self._broadcasts: BroadcastSequence | None = None

    def __repr__(self) -> str:
        return f"<Stream at {self.place}>"

    @property
    def place(self) -> str:
        """Where the stream is, for display: a host and port, without secrets."""
        return self._store.place

    @takes_known_options
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
        require_listener: bool = False,
    ) -> Sent:
        """Write one message; every agent with a handler for its key is woken.

        If no handler listens to the key, the message is stored all the same, and no agent gets it: the result says so,
        and the first time for each key a warning is logged.

        Args:
            key: dotted name, such as task.output.
            value: anything that has a JSON form.
            agent: the writer's name.
            delay: seconds until it is due.
            expires_in: seconds after which it is no longer wanted.
            priority: the class it waits in.
            dedup_key: with it the message is stored once within the dedup retention, even if it is sent again.
            correlation_id: what it belongs to.
            headers: further data beside the value.
            require_listener: refuse the message if no handler listens to its key.

        Returns:
            Its id, or the id of the message that was stored before under the same dedup_key; and whether it is
            unheard.

        Raises:
            NobodyListens: no handler listens to the key, and one is required.
            InvalidKey: `key` is not a key.
            InvalidValue: the value cannot be stored.
            StoreUnavailable: no reply came; `maybe_applied` says whether the message may have been stored all the same.
            StoreError: it was not stored.
        """
        draft = Draft(
            key,
            value,
            agent=agent,
            delay=delay,
            expires_in=expires_in,
            priority=priority,
            dedup_key=check_dedup_key(dedup_key),
            correlation_id=correlation_id,
            headers=headers,
        )
        return (await self.send_all([draft], require_listener=require_listener))[0]

    @takes_known_options
    async def send_all(self, drafts: list[Draft], *, require_listener: bool = False) -> list[Sent]:
        """Write several messages in their order, in one transaction: all of them or none.

        Args:
            drafts: the messages.
            require_listener: as for `send`, of each of them.
        """
        sent = await self._send_all(drafts, require_listener=require_listener)
        self._unheard.note_sent(drafts, sent)
        return sent

    async def _send_all(self, drafts: list[Draft], *, require_listener: bool = False) -> list[Sent]:
        if self._telemetry is None:
            return await self._store.send(drafts, require_listener=require_listener)
        with self._telemetry.sending(drafts) as carrying:
            return await self._store.send(carrying, require_listener=require_listener)

    @takes_known_options
    async def ask(
        self,
        key: str,
        value: object = None,
        *,
        timeout: float | None = 30,
        agent: str | None = None,
        **options: Unpack[AskOptions],
    ) -> Any:
        """Send a request and return what the handler of its key returns.

        Where several handlers listen to the key, the first that succeeds has answered.

        Args:
            key: the key to ask under.
            value: what is asked.
            timeout: seconds to wait; for ever where None.
            agent: the writer's name.
            options: as for `send`: expires_in, priority, dedup_key, correlation_id, headers.

        Raises:
            AskTimeout: no answer came in time; it is kept in the stream when it comes.
            AskFailed: its handler failed for good.
            NobodyAnswers: no handler listens to the key, or none that got it can answer any more.
            StoreError: the request could not be stored.
        """
        requester, draft = self._request(key, value, agent, options)
        return (await requester.ask(draft, timeout)).given()

    @takes_known_options
    async def ask_all(
        self,
        key: str,
        value: object = None,
        *,
        first: int | None = None,
        timeout: float | None = 30,
        agent: str | None = None,
        **options: Unpack[AskOptions],
    ) -> list[Answer]:
        """Send a request and return the answers of several handlers, good and bad, in the order they came.

        Args:
            key: as for `ask`.
            value: as for `ask`.
            first: how many to wait for; as many as handlers got it, where None.
            timeout: seconds after which those are returned that have come.
            agent: the writer's name.
            options: as for `ask`.

        Raises:
            AskTimeout: the request could not even be sent in time.
            StoreError: the request could not be stored.
        """
        requester, draft = self._request(key, value, agent, options)
        return await requester.ask_all(draft, first, timeout)

    @property
    def requester(self) -> Requester:
        """Sends requests and waits for their answers; it is started at its first use."""
        if self._requester is None:
            self._requester = Requester.start(
                self._store, self._settings, self._tasks, self._send_all, self._client
            )
        return self._requester

    def _request(
        self, key: str, value: object, agent: str | None, options: AskOptions
    ) -> tuple[Requester, Draft]:
        draft = self.requester.draft(key, value, options, agent=agent, dedup_key=f"ask {uuid4()}")
        return self.requester, draft

    def broadcast(self, key: str, value: object) -> None:
        """Send a value to the present listeners: it goes out at once, is stored nowhere, and arrives at most once.

        It does not wait, and does not say whether anybody received it. `listen(pattern, broadcasts=True)` receives.

        Args:
            key: the key to send it under.
            value: anything that has a JSON form, up to 64,000 bytes of it; 7,000 where NOTIFY carries it.

        Raises:
            InvalidKey: `key` is not a key.
            InvalidValue: the value cannot be broadcast.
            SettingsError: nothing carries broadcasts.
        """
        if self._broadcasts is None:
            self._broadcaster = open_broadcaster(self._settings, self._store)
            if self._broadcaster is None:
                raise SettingsError(NO_TRANSPORT)
            self._tasks.start_soon(self._broadcaster.run)
            self._broadcasts = BroadcastSequence(self._broadcaster.send)
        self._broadcasts.send(key, value)

    async def flush_broadcasts(self) -> None:
        """Return when the broadcasts so far are sent, or after two seconds."""
        if self._broadcaster is not None:
            await self._broadcaster.flush()

    async def get(self, message: int) -> Message[Any] | None:
        """Return the message with this id, or None if there is none, or no longer."""
        return await self._store.get(message)

    @takes_known_options
    async def read(self, pattern: str = ">", **options: Unpack[ReadOptions]) -> list[Message[Any]]:
        """Return messages by pattern in the order of their ids: the oldest after an id or a time, else the newest.

        Args:
            pattern: a key, or a pattern such as task.*.
            options: `after` and `before`, ids: only messages between them. `since` and `until`, datetimes: only
                messages written at the first or later, and before the second; one without a zone is local.
                `correlation_id`: only messages that share it, the first message included, which gave its id.
                `limit`: how many at most, 100 by default, up to 10,000.

        Raises:
            InvalidKey: `pattern` is no pattern.
            StoreError: the stream could not be read.
        """
        return await self._store.read(check_pattern(pattern), **options)

    @takes_known_options
    async def latest(self, key: str, *, correlation_id: str | None = None) -> Message[Any] | None:
        """Return the newest message under a key, or None; with a correlation id, the newest that shares it."""
        found = await self._store.read(check_key(key), correlation_id=correlation_id, limit=1)
        return found[0] if found else None

    @takes_known_options
    async def latest_of_each(self, pattern: str, *, limit: int = 1000) -> list[Message[Any]]:
        """Return the newest message of each key that matches, the newest first."""
        return await self._store.read(check_pattern(pattern), limit=limit, latest=True)

    @overload
    def listen(
        self, pattern: str, *, since: int | None = None, broadcasts: Literal[False] = False
    ) -> AsyncGenerator[Message[Any]]: ...

    @overload
    def listen(
        self, pattern: str, *, since: int | None = None, broadcasts: Literal[True]
    ) -> AsyncGenerator[Message[Any] | Broadcast[Any]]: ...

    @takes_known_options
    async def listen(
        self, pattern: str, *, since: int | None = None, broadcasts: bool = False
    ) -> AsyncGenerator[Message[Any] | Broadcast[Any]]:
        """Yield messages as they are written, for ever; waits while the store is away.

        Nothing is kept for a listener: messages written while it is away are read only with `since`. Rows of
        transactions that commit late come when they commit.

        Args:
            pattern: a key, or a pattern such as site.>.
            since: begin with the messages after this id; by default with those committed from now on.
            broadcasts: yield broadcasts as well, each a `Broadcast`, at most once.

        Raises:
            SettingsError: `broadcasts` are asked for, and nothing carries them.
            Unauthorized: the key or the role is wrong.
            MigrationMissing: the database lacks the schema.
        """
        listener = StreamListener(
            self._settings,
            self._store,
            check_pattern(pattern),
            with_broadcasts=broadcasts,
            client=self._client,
        )
        reader = await Reader.begin(self._store, pattern, since)
        self._tasks.start_soon(listener.run)
        try:
            while True:
                listener.woken = anyio.Event()
                while listener.broadcasts:
                    yield listener.broadcasts.popleft()
                if not listener.is_due():
                    await listener.rest()
                    continue
                try:
                    fresh = await reader.fresh()
                except StoreUnavailable as error:
                    listener.note_away(error)
                    continue
                listener.note_read(fresh)
                for message in fresh:
                    yield message
        finally:
            listener.scope.cancel()

    async def hints(self, pattern: str = ">") -> AsyncGenerator[bool]:
        """Yield at once, and then whenever there may be something new under a pattern, for ever.

        Yields:
            Whether a push path is live; while none is, it yields at the pace of polling.
        """
        listener = StreamListener(self._settings, self._store, check_pattern(pattern), client=self._client)
        self._tasks.start_soon(listener.run)
        try:
            while True:
                listener.woken = anyio.Event()
                listener.is_due()
                yield listener.reach.is_live
                await listener.rest()
        finally:
            listener.scope.cancel()

    @property
    def operations(self) -> Admin:
        """Operations: pause, replay, redrive and so on."""
        return Admin(self._store)

    @property
    def views(self) -> Queries:
        """Queries for people: pages, traces, activity and so on."""
        return Queries(self._store)

    async def stats(self) -> dict[str, Any]:
        """Return the counts of subscriptions, deliveries and workers."""
        found: dict[str, Any] = await self._store.operate("stream_stats")
        return found
