"""Deaths on order: an attempt ends as if its process had been killed right after a step. For tests of agents."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from runtime.agent.step import StepPlace
from runtime.agent.transaction import OpenTransaction, Transactions
from runtime.connection.database import Connection
from runtime.store import Delivery
from runtime.worker.execution.handler_steps import DeliverySteps
from runtime.worker.execution.step_writer import StepWriter

T = TypeVar("T")


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

    async def strike_in_transaction(self, delivery: Delivery, place: StepPlace) -> None:
        """Have the attempt die, perhaps, when a transaction has kept this step.

        Raises:
            Killed: it dies.
        """
        if self.strike(delivery, place):
            await self.lapse(delivery)
            raise _killed(place)


class MortalSteps(DeliverySteps):
    """Steps after which an attempt may die.

    Args:
        deaths: say when.
        writer: writes them.
        delivery: whose steps they are.
        version: that of the handler.
    """

    def __init__(self, deaths: Deaths, writer: StepWriter, delivery: Delivery, version: str | None) -> None:
        super().__init__(writer, delivery, version)
        self._deaths = deaths
        self._death: Future[list[Any]] | None = None

    async def keep(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result, and perhaps die."""
        earlier = await super().keep(place, text, undo)
        if (death := self._death_after(place)) is not None:
            await asyncio.shield(asyncio.wrap_future(death))
            raise _killed(place)
        return earlier

    def keep_blocking(self, place: StepPlace, text: str, undo: str | None = None) -> list[Any]:
        """Keep a result, from a thread, and perhaps die."""
        earlier = super().keep_blocking(place, text, undo)
        if (death := self._death_after(place)) is not None:
            death.result()
            raise _killed(place)
        return earlier

    def _death_after(self, place: StepPlace) -> "Future[list[Any]] | None":
        """Return the end of the lease, where the attempt dies now, or has died after a step that went on beside."""
        # It ends once: by the second time the lease would be that of the next attempt.
        if self._death is None and self._deaths.strike(self._delivery, place):
            self._death = self._writer.submit(partial(self._deaths.lapse, self._delivery))
        return self._death

    def along(self, transactions: Transactions) -> Transactions:
        """Return transactions after whose steps the attempt may die as well."""
        return MortalTransactions(self._deaths, self._delivery, transactions)


@dataclass(frozen=True, slots=True)
class MortalTransactions:
    """Opens the transactions of a delivery whose attempts may die.

    Attributes:
        deaths: say when.
        delivery: whose transactions they are.
        inner: opens the real ones.
    """

    deaths: Deaths
    delivery: Delivery
    inner: Transactions

    async def begin(self) -> OpenTransaction:
        """Begin one."""
        return MortalTransaction(self, await self.inner.begin())

    def from_thread(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run work on the loop of user code; see `Transactions.from_thread`."""
        return self.inner.from_thread(work)


@dataclass(frozen=True, slots=True)
class MortalTransaction:
    """A transaction after whose step an attempt may die.

    Attributes:
        owner: has opened it.
        inner: the real one.
    """

    owner: MortalTransactions
    inner: OpenTransaction

    @property
    def connection(self) -> Connection:
        """The connection for the handler's statements."""
        return self.inner.connection

    def lock_out(self) -> None:
        """Let the handler run nothing more; see `OpenTransaction.lock_out`."""
        self.inner.lock_out()

    async def keep(self, place: StepPlace, text: str, undo: str | None) -> list[Any]:
        """Keep the result of a step, commit, and perhaps die."""
        earlier = await self.inner.keep(place, text, undo)
        await self.owner.deaths.strike_in_transaction(self.owner.delivery, place)
        return earlier

    async def finish(self, report: Any) -> None:
        """Finish the delivery; see `OpenTransaction.finish`."""
        await self.inner.finish(report)

    async def roll_back(self) -> None:
        """Roll back; see `OpenTransaction.roll_back`."""
        await self.inner.roll_back()


def _killed(place: StepPlace) -> Killed:
    return Killed(f"a test has killed it after step {place[0]!r}")
