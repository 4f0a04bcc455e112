"""The ticks of timers: every worker writes them when a slot has come, and the database lets one of them.

Slots are computed here, from the database's time; the database keeps the last slot that was ticked. So nothing depends
on the clocks of workers, and a worker that comes back knows which slots were missed.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

import anyio

from runtime.agent.handler import Handler, Timer
from runtime.backoff import Outage, retrying
from runtime.encoding.json import encode
from runtime.errors import StoreError
from runtime.message import moment
from runtime.store import Store

_log = logging.getLogger("runtime.worker.scheduler")
_AGAIN_SECONDS = 300.0
_BATCH = 500
_COUNTED = 1_000
_LATE = timedelta(seconds=30)


async def keep_time(store: Store, worker: UUID, handlers: Sequence[Handler]) -> None:
    """Tick for the handlers that have a timer, for ever; only cancellation ends it.

    Args:
        store: where messages live.
        worker: the id of this worker.
        handlers: all that this worker runs, so that a handler which has lost its timer is known.
    """
    keeper = _Scheduler(store, worker, handlers)
    outage = Outage()

    def say(error: StoreError) -> None:
        _log.warning("the timers cannot tick: %s Trying again until they can.", error)

    async def tick() -> None:
        await keeper.declare()
        outage.over()
        if keeper.timers:
            await keeper.tick_for_a_while()

    await retrying(tick, outage, on=StoreError, say=say)
    while keeper.timers:
        await retrying(tick, outage, on=StoreError, say=say)


async def tick_once(store: Store, worker: UUID, handlers: Sequence[Handler]) -> Callable[[], float | None]:
    """Tick whatever has come due, and leave it at that.

    Args:
        store: where messages live.
        worker: the id of this worker.
        handlers: all that this worker runs.

    Returns:
        A function that says in how many seconds the next slot comes; None where no timer ticks.

    Raises:
        StoreError: some of it was not ticked; the next call makes up for that.
    """
    keeper = _Scheduler(store, worker, handlers)
    await keeper.declare()
    while keeper.timers and await keeper.tick_due():
        pass
    return keeper.seconds_to_next


@dataclass
class _Scheduler:
    store: Store
    worker: UUID
    handlers: Sequence[Handler]
    timers: dict[str, Timer] = field(init=False)
    # The last slot of each timer that was ticked or passed over, as the database says.
    _last: dict[str, datetime] = field(default_factory=dict)
    _now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _asked_at: float = 0.0
    _given_way: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.timers = {each.name: each.timer for each in self.handlers if each.timer is not None}

    async def declare(self) -> None:
        """Say which timers there are; learn the time, and how far each has come."""
        declared = [
            {"name": each.name}
            if each.timer is None
            else {
                "name": each.name, "key": each.timer.key, "spec": each.timer.schedule.spec,
                "missed": each.timer.missed,
            }
            for each in self.handlers
        ]  # fmt: skip
        answer = await self.store.operate(
            "stream_schedule", worker=str(self.worker), schedules=encode(declared)
        )
        self._note_time(answer)
        self._last = {
            name: moment(row["last_slot"]) for name, row in answer["schedules"].items() if row["current"]
        }
        for name in self.timers.keys() - self._last.keys() - self._given_way:
            if answer["known"]:
                self._given_way.add(name)
                _log.warning(
                    "%s ticks by another schedule, which a worker that started later declared; it keeps that",
                    name,
                )

    async def tick_for_a_while(self) -> None:
        """Tick as the slots come, until it is time to ask again what there is."""
        until = time.monotonic() + _AGAIN_SECONDS
        while (left := until - time.monotonic()) > 0:
            await self.tick_due()
            seconds = self.seconds_to_next()
            await anyio.sleep(left if seconds is None else min(left, max(0.0, seconds)))

    async def tick_due(self) -> bool:
        """Tick what has come due by now; returns whether there was anything."""
        now = self._time()
        due = [
            (name, last) for name, last in self._last.items() if self.timers[name].schedule.next(last) <= now
        ]
        for name, last in due:
            await self._tick(name, last, now)
        return bool(due)

    async def _tick(self, name: str, last: datetime, now: datetime) -> None:
        timer = self.timers[name]
        reached, ticks = due_ticks(timer, last, now)
        answer = await self.store.operate(
            "stream_tick", schedule=name, spec=timer.schedule.spec, after=last, reached=reached, ticks=encode(ticks)
        )  # fmt: skip
        self._note_time(answer)
        if answer["current"]:
            self._last[name] = moment(answer["last_slot"])
        else:
            # The timer was declared otherwise, or removed; the next declaration tells which.
            del self._last[name]

    def _note_time(self, answer: Mapping[str, Any]) -> None:
        # Counted from the arrival of the answer, so never ahead of the database.
        self._now, self._asked_at = moment(answer["now"]), time.monotonic()

    def _time(self) -> datetime:
        return self._now + timedelta(seconds=time.monotonic() - self._asked_at)

    def seconds_to_next(self) -> float | None:
        """In how many seconds the next slot comes; None where no timer ticks."""
        now = self._time()
        return min(
            ((self.timers[name].schedule.next(last) - now).total_seconds() for name, last in self._last.items()),
            default=None,
        )  # fmt: skip


def due_ticks(timer: Timer, last: datetime, now: datetime) -> tuple[datetime, list[dict[str, Any]]]:
    """Return which ticks to write for the slots after `last` up to `now`, and up to where that brings the timer.

    Args:
        timer: the timer.
        last: up to here everything was ticked or passed over.
        now: the database's time; at least one slot has come by then.
    """
    schedule = timer.schedule
    if timer.missed == "all":
        slots = list(islice(schedule.between(last, now), _BATCH))
        return slots[-1], [_tick(slot) for slot in slots]
    newest = schedule.last(last, now)
    assert newest is not None, "only asked when a slot has come"
    passed_over = sum(1 for _ in islice(schedule.between(last, newest), _COUNTED + 1)) - 1
    if timer.missed == "none" and now - newest > _LATE:
        return newest, []
    return newest, [_tick(newest, passed_over)]


def _tick(slot: datetime, missed: int = 0) -> dict[str, Any]:
    return {"slot": slot.isoformat(), "missed": missed}
