"""Deaths on order: an attempt ends as if its process had been killed right after a step. For tests of agents."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from runtime.agent.step import StepPlace
from runtime.store import Delivery, Store
from runtime.worker.execution.handler_steps import DeliverySteps, Submit


class Killed(BaseException):
    """Raised through a handler that a test kills. Not to be caught."""


@dataclass(slots=True)
class Deaths:
    """Which attempts are to die.

    Attributes:
        lapse: ends the lease of a delivery as a death does, and has the delivery taken again.
        steps: the names of the steps after which an attempt dies; empty for every step, None for no death.
        died: the names of the steps after which attempts died, in order.
    """

    lapse: Callable[[Delivery], Awaitable[list[Any]]]
    steps: frozenset[str] | None = None
    died: list[str] = field(default_factory=list)
    _met: set[tuple[tuple[int, int], StepPlace]] = field(default_factory=set)

    def strike(self, delivery: Delivery, place: StepPlace) -> bool:
        """Whether the attempt dies now, when it has kept this step: once for each step of a delivery."""
        if self.steps is None or (self.steps and place[0] not in self.steps):
            return False
        if (delivery.place, place) in self._met:
            return False
        self._met.add((delivery.place, place))
        self.died.append(place[0])
        return True


class MortalSteps(DeliverySteps):
    """Steps after which an attempt may die.

    Args:
        deaths: say when.
        store: where messages live.
        submit: runs work on the loop of the store, from any thread.
        delivery: whose steps they are.
        version: that of the handler.
    """

    def __init__(
        self, deaths: Deaths, store: Store, submit: Submit, delivery: Delivery, version: str | None
    ) -> None:
        super().__init__(store, submit, delivery, version)
        self._deaths = deaths

    async def keep(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result, and perhaps die."""
        earlier = await super().keep(place, text, undo)
        if self._deaths.strike(self._delivery, place):
            await asyncio.wrap_future(self._submit(partial(self._deaths.lapse, self._delivery)))
            raise Killed(f"a test has killed it after step {place[0]!r}")
        return earlier

    def keep_blocking(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result, from a thread, and perhaps die."""
        earlier = super().keep_blocking(place, text, undo)
        if self._deaths.strike(self._delivery, place):
            self._submit(partial(self._deaths.lapse, self._delivery)).result()
            raise Killed(f"a test has killed it after step {place[0]!r}")
        return earlier
