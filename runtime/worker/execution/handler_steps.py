"""The steps of handlers: kept in the store, on the runtime's own loop, whatever loop or thread the handler runs on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias

from runtime.agent.step import StepPlace
from runtime.agent.transaction import Transactions
from runtime.backoff import Outage, retrying
from runtime.errors import LeaseLost, StoreUnavailable
from runtime.store import Delivery, Store

_log = logging.getLogger("runtime.handlers")

Submit: TypeAlias = Callable[[Callable[[], Awaitable[list[Any]]]], "Future[list[Any]]"]


class DeliverySteps:
    """Keeps the results of the steps of one delivery, as long as its lease is held.

    Args:
        store: where messages live.
        submit: runs work on the loop of the store, from any thread.
        delivery: whose steps they are.
        version: that of the handler, which is kept with each.
    """

    def __init__(self, store: Store, submit: Submit, delivery: Delivery, version: str | None = None) -> None:
        self._store = store
        self._submit = submit
        self._delivery = delivery
        self._version = {} if version is None else {"version": version}

    async def keep(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result; see `StepKeeper.keep`."""
        return await asyncio.wrap_future(self._submit(partial(self._keep, place, text, undo)))

    def keep_blocking(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result, from a thread; see `StepKeeper.keep_blocking`."""
        return self._submit(partial(self._keep, place, text, undo)).result()

    def along(self, transactions: Transactions) -> Transactions:
        """Return what opens transactions; see `StepKeeper.along`."""
        return transactions

    async def _keep(self, place: StepPlace, text: str, undo: str | None) -> list[Any]:
        message, subscription = self._delivery.place
        (name, key, occurrence), lease = place, self._delivery.lease
        more = {} if undo is None else {"undo": undo}
        # Tried until the attempt ends: a result that is dropped is worked out, and paid for, once more.
        answer = await retrying(
            partial(
                self._store.operate, "stream_step",
                message=message, subscription=subscription, lease=lease,
                name=name, key=key, occurrence=occurrence, value=text, **self._version, **more,
            ),
            Outage(first=0.1, cap=2.0),
            on=StoreUnavailable,
            say=partial(self._say_trouble, name),
        )  # fmt: skip
        if not answer["held"]:
            raise LeaseLost(
                f"The result of step {name!r} on message {message} was not kept: the delivery belongs to another "
                "worker by now, since its lease was not renewed in time. Was this process frozen, or its loop blocked?"
            )
        earlier: list[Any] = answer.get("earlier") or []
        return earlier

    def _say_trouble(self, name: str, error: StoreUnavailable) -> None:
        _log.warning(
            "the result of step %r on message %s cannot be stored yet; trying on: %s",
            name, self._delivery.place[0], error,
        )  # fmt: skip
