"""The steps of handlers: kept in the store, on the runtime's own loop, whatever loop or thread the handler runs on."""

import asyncio
import logging
from functools import partial
from typing import Any

from runtime.agent.step import StepPlace
from runtime.agent.transaction import Transactions
from runtime.backoff import Outage, retrying
from runtime.encoding.json import encode
from runtime.errors import LeaseLost, StoreUnavailable
from runtime.store import Delivery
from runtime.worker.execution.step_writer import StepWriter

_log = logging.getLogger("runtime.handlers")


class DeliverySteps:
    """Keeps the results of the steps of one delivery, as long as its lease is held.

    Args:
        writer: writes it, beside those of others.
        delivery: whose steps they are.
        version: that of the handler, which is kept with each.
    """

    def __init__(self, writer: StepWriter, delivery: Delivery, version: str | None = None) -> None:
        self._writer = writer
        self._delivery = delivery
        message, subscription = delivery.place
        self._head = f'{{"message":{message},"subscription":{subscription},"lease":"{delivery.lease}"'
        if version is not None:
            self._head += f',"version":{encode(version)}'

    async def keep(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result; see `StepKeeper.keep`."""
        step = self._as_json(place, text, undo)
        written = await self._writer.write(step)
        if written is None:
            alone = self._writer.submit(partial(self._write_alone, place, step))
            return self._earlier(place, await asyncio.wrap_future(alone))
        return self._earlier(place, written)

    def keep_blocking(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result, from a thread; see `StepKeeper.keep_blocking`."""
        step = self._as_json(place, text, undo)
        written = self._writer.write_blocking(step)
        if written is None:
            written = self._writer.submit(partial(self._write_alone, place, step)).result()
        return self._earlier(place, written)

    def along(self, transactions: Transactions) -> Transactions:
        """Return what opens transactions; see `StepKeeper.along`."""
        return transactions

    def _as_json(self, place: StepPlace, text: str, undo: str | None) -> str:
        name, key, occurrence = place
        end = "" if undo is None else f',"undo":{undo}'
        return f'{self._head},"name":{encode(name)},"key":{encode(key)},"occurrence":{occurrence},"value":{text}{end}}}'

    async def _write_alone(self, place: StepPlace, step: str) -> dict[str, Any]:
        # Tried until the attempt ends: a result that is dropped is worked out, and paid for, once more.
        answer = await retrying(
            partial(self._writer.store.operate, "stream_steps", steps=f"[{step}]"),
            Outage(first=0.1, cap=2.0),
            on=StoreUnavailable,
            say=partial(self._say_trouble, place[0]),
        )
        written: dict[str, Any] = answer[0]
        return written

    def _earlier(self, place: StepPlace, written: dict[str, Any]) -> list[Any]:
        if not written["held"]:
            raise LeaseLost(
                f"The result of step {place[0]!r} on message {self._delivery.place[0]} was not kept: the delivery "
                "belongs to another worker by now, since its lease was not renewed in time. Was this process frozen, "
                "or its loop blocked?"
            )
        earlier: list[Any] = written.get("earlier") or []
        return earlier

    def _say_trouble(self, name: str, error: StoreUnavailable) -> None:
        _log.warning(
            "the result of step %r on message %s cannot be stored yet; trying on: %s",
            name, self._delivery.place[0], error,
        )  # fmt: skip
