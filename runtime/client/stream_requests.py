"""How does a script ask? One asker while its stream is open, with wake-ups of its own from the first question on."""

import logging
from typing import Any
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup

from runtime.agent.context import AskOptions
from runtime.agent.request_reply import asking_headers, reply_key
from runtime.client.factories import open_wakeups, reachable_by
from runtime.client.requester import Requester, Send, check_wait
from runtime.errors import StoreError
from runtime.message import Answer, Draft, Priority, check_dedup_key
from runtime.settings import Settings
from runtime.store import Store
from runtime.wakeups import Path, Reachability

_log = logging.getLogger("runtime.client.requester")


class StreamRequests:
    """Sends a script's requests, and hears of their answers.

    Args:
        store: where messages live.
        settings: where wake-ups come from, and the paces.
        tasks: what it listens in, until the stream is closed.
        send: sends, with the trace context where one is wanted.
    """

    def __init__(self, store: Store, settings: Settings, tasks: TaskGroup, send: Send) -> None:
        identity = uuid4()
        self._store = store
        self._tasks = tasks
        # Nobody is to post to a script.
        self._wakeups = open_wakeups(
            settings.model_copy(update={"webhook": None}), identity, [reply_key(identity)]
        )
        self._reach = Reachability(frozenset(path for source in self._wakeups for path in source.paths))
        self._asker = Requester(
            store, settings, identity, reachable_by(self._wakeups), self._reach, send=send
        )
        self._nonces: list[str] = []
        self._asked = anyio.Event()
        tasks.start_soon(self._asker.run)
        tasks.start_soon(self._prove)
        for source in self._wakeups:
            tasks.start_soon(source.run, self)

    async def ask(
        self, key: str, value: object, seconds: float | None, agent: str | None, options: AskOptions
    ) -> Any:
        """Ask, and return the first good answer's value; see `Stream.ask`."""
        check_wait(seconds)
        return (await self._asker.ask(self._request(key, value, agent, options), seconds)).given()

    async def ask_all(
        self,
        key: str,
        value: object,
        count: int | None,
        seconds: float | None,
        agent: str | None,
        options: AskOptions,
    ) -> list[Answer]:
        """Ask, and return so many answers; see `Stream.ask_all`."""
        check_wait(seconds, count)
        return await self._asker.ask_all(self._request(key, value, agent, options), count, seconds)

    def _request(self, key: str, value: object, agent: str | None, options: AskOptions) -> Draft:
        asker, given = self._asker, options.get("headers")
        return Draft(
            key,
            value,
            agent=agent,
            expires_in=options.get("expires_in"),
            priority=options.get("priority", Priority.NORMAL),
            # So that it may be sent again when the store's answer to it was lost.
            dedup_key=check_dedup_key(options.get("dedup_key")) or f"ask {uuid4()}",
            correlation_id=options.get("correlation_id"),
            headers=asking_headers(asker.id, asker.reachable_by, given),
        )

    async def _prove(self) -> None:
        """Send nonces through the database, which prove the push paths."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            while self._nonces:
                try:
                    await self._store.operate(
                        "stream_beat", worker=str(self._asker.id), nonce=self._nonces.pop()
                    )
                except StoreError as error:
                    # Its deadline passes, and the path counts as deaf: the table is looked at more often.
                    _log.debug("a nonce could not be sent: %s", error)

    # Called by the wake-ups

    def wake(self, why: str, message: int | None = None) -> None:
        """Look."""
        self._asker.wake()

    def live(self, path: Path) -> None:
        """Look once, then wait for wake-ups."""
        self._reach.live(path)
        self._asker.wake()

    def gap(self, path: Path, why: str) -> None:
        """Look."""
        self._asker.wake()

    def lost(self, path: Path, why: str) -> None:
        """Look at the pace of polling."""
        self._reach.lost(path)
        self._asker.wake()

    def prove(self, nonce: str) -> None:
        """Send the nonce through the database."""
        self._nonces.append(nonce)
        self._asked.set()
