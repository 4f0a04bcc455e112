"""The waits of handlers: kept in the store, and looked at again when the database tells, on the runtime's own loop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias

import anyio

from runtime.agent.waiting import IsOver, Waited
from runtime.backoff import Outage, retrying
from runtime.encoding.json import encode
from runtime.errors import LeaseLost, StoreUnavailable
from runtime.store import Delivery, Store
from runtime.worker.execution.services import Spans

_log = logging.getLogger("runtime.handlers")
# The database tells of the end of a wait; where no push path is live, these looks find it.
_LOOK_SECONDS = 0.25
_FIRST_PAUSE_SECONDS = 0.001

Submit: TypeAlias = Callable[[Callable[[], Awaitable[Waited]]], "Future[Waited]"]


class WaitHints:
    """Passes wake-ups on to the waits that go on within this process.

    Attributes:
        next: set at the next wake-up.
    """

    def __init__(self) -> None:
        self.next = anyio.Event()

    def wake(self) -> None:
        """Something may have come. Called on the runtime's own loop."""
        woken, self.next = self.next, anyio.Event()
        woken.set()


class DeliveryWaits:
    """Keeps the waits of one delivery, as long as its lease is held.

    Args:
        store: where messages live.
        submit: runs work on the loop of the store, from any thread.
        hints: tell when to look again.
        spans: link the attempt that goes on with the one that was suspended, where a trace is wanted.
        delivery: whose waits they are.
    """

    def __init__(
        self, store: Store, submit: Submit, hints: WaitHints, spans: Spans | None, delivery: Delivery
    ) -> None:
        self._store = store
        self._submit = submit
        self._hints = hints
        self._spans = spans
        self._delivery = delivery

    async def wait(self, waits: Sequence[Mapping[str, Any]], is_over: IsOver, seconds: float) -> Waited:
        """Register waits; see `WaitKeeper.wait`."""
        work = partial(self._wait, self._traced(waits), is_over, seconds)
        return self._linked(await asyncio.wrap_future(self._submit(work)))

    def wait_blocking(self, waits: Sequence[Mapping[str, Any]], is_over: IsOver, seconds: float) -> Waited:
        """Register waits, from a thread; see `WaitKeeper.wait_blocking`."""
        return self._linked(self._submit(partial(self._wait, self._traced(waits), is_over, seconds)).result())

    def _traced(self, waits: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        context = None if self._spans is None else self._spans.waiting()
        return waits if context is None else [{**each, "trace": context} for each in waits]

    def _linked(self, waited: Waited) -> Waited:
        if self._spans is not None:
            self._spans.went_on(waited.outcomes)
        return waited

    async def _wait(self, waits: Sequence[Mapping[str, Any]], is_over: IsOver, seconds: float) -> Waited:
        woken = self._hints.next
        waited = await self._look(waits)
        pause = _FIRST_PAUSE_SECONDS
        with anyio.move_on_after(seconds):
            while not is_over(waited.outcomes):
                with anyio.move_on_after(_LOOK_SECONDS):
                    await woken.wait()
                # Most wake-ups are for other work.
                await anyio.sleep(pause)
                pause = min(pause * 2, _LOOK_SECONDS)
                woken = self._hints.next
                waited = await self._look(waits)
        return waited

    async def _look(self, waits: Sequence[Mapping[str, Any]]) -> Waited:
        message, subscription = self._delivery.place
        answer = await retrying(
            partial(
                self._store.operate, "stream_wait",
                message=message, subscription=subscription, lease=self._delivery.lease, waits=encode(waits),
            ),
            Outage(first=0.1, cap=2.0),
            on=StoreUnavailable,
            say=partial(
                _log.warning, "the waits on message %s cannot be stored yet; trying on: %s", message
            ),
        )  # fmt: skip
        if not answer["held"]:
            raise LeaseLost(
                f"The waits on message {message} were not kept: the delivery belongs to another worker by now, since "
                "its lease was not renewed in time. Was this process frozen, or its loop blocked?"
            )
        return Waited(answer["outcomes"], answer.get("seconds"))
