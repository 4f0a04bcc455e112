"""The transactions of handlers: on connections of their own, on the loop of user code."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import anyio

from runtime.agent.handler import Handler
from runtime.agent.step import StepPlace
from runtime.backoff import Outage, retrying
from runtime.connection.database import FAULTS, Connection
from runtime.encoding.json import decode
from runtime.errors import DeclarationError, LeaseLost, RuntimeFault, StoreUnavailable
from runtime.store import Delivery, Exchange, ExchangeAnswer, Report
from runtime.store.functions import statement_of
from runtime.store.postgres import PostgresStore
from runtime.store.transaction import FAILED_BEFORE, PostgresTransaction

T = TypeVar("T")

_log = logging.getLogger("runtime.handlers")
# Of a handler without a timeout: so long a transaction may stand still, as that of a frozen process does.
_IDLE_SECONDS = 600.0


class HandlerTransactions:
    """Opens transactions for the handlers of a worker. Made on the loop of user code.

    Args:
        store: has connections for them, apart from those that carry the worker's exchanges.
        worker: the id of the worker.
    """

    def __init__(self, store: PostgresStore, worker: UUID) -> None:
        self.store = store
        self.worker = worker
        self.loop = asyncio.get_running_loop()
        # Exchanges that finish deliveries are numbered, so that it can be asked whether one was committed.
        self._pumps: list[tuple[UUID, int]] = []

    def of(self, handler: Handler, delivery: Delivery) -> "DeliveryTransactions":
        """Return what opens the transactions of one delivery."""
        return DeliveryTransactions(self, handler, delivery)

    def number(self) -> tuple[UUID, int]:
        """Draw the number of an exchange."""
        pump, n = self._pumps.pop() if self._pumps else (uuid4(), 0)
        return pump, n + 1

    def reuse(self, pump: UUID, n: int) -> None:
        """Let another exchange have the number after this one."""
        self._pumps.append((pump, n))


class DeliveryTransactions:
    """Opens the transactions of one delivery.

    Args:
        owner: what the worker's handlers have in common.
        handler: whose transactions they are.
        delivery: which they keep steps of, or finish.
    """

    def __init__(self, owner: HandlerTransactions, handler: Handler, delivery: Delivery) -> None:
        self.owner = owner
        self.delivery = delivery
        self.version = handler.version
        self._handler = handler

    async def begin(self) -> "DeliveryTransaction":
        """Begin a transaction; see `Transactional.transaction`."""
        name, store = self._handler.name, self.owner.store
        if self._handler.deliver == "each":
            raise DeclarationError(
                f'{name} gets each message with deliver="each", which nothing is kept of: there is no end of a '
                "delivery that a transaction could hold. Use your own connection."
            )
        begun = await store.begin(idle_seconds=self._handler.timeout or _IDLE_SECONDS)
        return DeliveryTransaction(self, store, begun)

    def from_thread(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run work on the loop of user code; see `Transactions.from_thread`."""
        return asyncio.run_coroutine_threadsafe(work(), self.owner.loop).result()


class DeliveryTransaction:
    """One transaction, which keeps a step of its delivery or finishes it.

    Args:
        transactions: opened it.
        store: asked for what became of a commit without an answer.
        begun: the transaction in the database.
    """

    def __init__(
        self, transactions: DeliveryTransactions, store: PostgresStore, begun: PostgresTransaction
    ) -> None:
        self._owner = transactions.owner
        self._delivery = transactions.delivery
        self._version = transactions.version
        self._store = store
        self._begun = begun

    @property
    def connection(self) -> Connection:
        """The connection for the handler's statements."""
        return self._begun.connection

    def lock_out(self) -> None:
        """Let the handler run nothing more; see `OpenTransaction.lock_out`."""
        self._begun.lock_out()

    async def roll_back(self) -> None:
        """Roll back; see `OpenTransaction.roll_back`."""
        await self._begun.roll_back()

    async def keep(self, place: StepPlace, text: str, undo: str | None) -> list[Any]:
        """Keep the result of a step and commit; see `OpenTransaction.keep`."""
        (message, subscription), (name, key, occurrence) = self._delivery.place, place
        given = {
            "message": message, "subscription": subscription, "lease": self._delivery.lease,
            "name": name, "key": key, "occurrence": occurrence,
        }  # fmt: skip
        more = {"version": self._version, "undo": undo}
        kept = {**given, "value": text, **{name: each for name, each in more.items() if each is not None}}
        answer = await self._call("stream_step", kept)
        await self._check_held(answer["held"], f"the result of step {name!r} and what its transaction wrote")
        if earlier := answer.get("earlier"):
            await self.roll_back()
            return list(earlier)
        if (error := await self._committed()) is None:
            return []
        answer = await self._ask(
            partial(self._store.operate, "stream_step", **given, value="null", asking=True), error
        )
        await self._check_held(answer["held"], f"the result of step {name!r} and what its transaction wrote")
        if not answer["earlier"]:
            raise error
        return list(answer["earlier"])

    async def finish(self, report: Report) -> None:
        """Finish the delivery and commit; see `OpenTransaction.finish`."""
        pump, n = self._owner.number()
        exchange = Exchange(worker=self._owner.worker, pump=pump, n=n, done=[report], stay=True)
        given = {name: value for name, value in exchange.arguments().items() if value is not None}
        answer = ExchangeAnswer.from_wire(await self._call("stream_exchange", given))
        await self._check_held(report.delivery.place not in answer.refused, "what its transaction wrote")
        if (error := await self._committed()) is not None:
            # Under the same number: it is answered as repeated if the first one was committed.
            empty = Exchange(worker=self._owner.worker, pump=pump, n=n, stay=True)
            answer = await self._ask(partial(self._store.exchange, empty), error)
            if not answer.repeated:
                raise error
        self._owner.reuse(pump, n)
        report.answer = answer

    async def _call(self, function: str, given: dict[str, Any]) -> Any:
        """Return the answer of one of the stream's functions, called in the transaction."""
        try:
            self._begun.lock_out()
            if not self._begun.is_open:
                raise RuntimeFault(
                    "The transaction was ended by a statement, or its connection is lost: leave begin, commit and "
                    "rollback to the runtime. A part of it is undone by a savepoint, `connection.transaction()`."
                )
            statement = statement_of(function, tuple(given))
            return decode(await self._begun.fetch_value(statement, given.values()))
        except FAILED_BEFORE as error:
            await self.roll_back()
            raise RuntimeFault(
                "A statement of the transaction had failed, and its error was caught: nothing of the transaction can "
                "be committed. Put such a statement into a savepoint, `async with connection.transaction():`."
            ) from error
        except FAULTS as error:
            await self.roll_back()
            self._store.complain(error)
        except BaseException:
            await self.roll_back()
            raise

    async def _check_held(self, is_held: bool, what: str) -> None:
        if not is_held:
            await self.roll_back()
            raise LeaseLost(
                f"On message {self._delivery.place[0]}, {what} was not kept: the delivery belongs to another worker by "
                "now, since its lease was not renewed in time. Was this process frozen, or its loop blocked?"
            )

    async def _committed(self) -> Exception | None:
        """Commit; returns an error that leaves open whether it was."""
        try:
            # Ended from outside it would never be known what became of it; a commit has a time limit of its own.
            with anyio.CancelScope(shield=True):
                await self._begun.commit()
        except FAULTS as error:
            return error
        return None

    async def _ask(self, ask: Callable[[], Coroutine[Any, Any, T]], error: Exception) -> T:
        """Ask the database what became of the commit, until it answers or the attempt is ended from outside."""
        message = self._delivery.place[0]
        _log.warning(
            "the commit of a transaction on message %s was not answered; asking whether it took effect: %s",
            message, error,
        )  # fmt: skip
        return await retrying(
            ask,
            Outage(first=0.1, cap=2.0),
            on=StoreUnavailable,
            say=partial(
                _log.warning,
                "what became of a transaction on message %s is not known yet; asking on: %s",
                message,
            ),
        )
