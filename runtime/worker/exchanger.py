"""The pump's numbered exchanges: each is repeated until it is answered, or known not to have been applied.

A fault may lie in the connection, or in something that an exchange carries. So if an exchange fails for long, an empty
one is made under its number: that passes where the connection is good, and tells whether the full exchange was applied
before its answer was lost.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import anyio

from runtime.backoff import Outage
from runtime.errors import StoreError, StoreUnavailable
from runtime.store import Delivery, Exchange, ExchangeAnswer, Look, Store
from runtime.store.sqlstates import remedy_of

_log = logging.getLogger("runtime.worker.dispatcher")
# Refusals that follow from the request itself: a pause before the emptied one would gain nothing.
_DEFINITE = frozenset({"blocked", "refused", "forbidden", "missing", "large"})


class Unapplied(Exception):
    """An exchange was not applied for something in it: an empty one passed in its place.

    Attributes:
        error: the error of the exchange.
        leased: the deliveries that the empty one has leased in its place.
    """

    def __init__(self, error: StoreError, leased: tuple[Delivery, ...]) -> None:
        super().__init__(str(error))
        self.error = error
        self.leased = leased


class Exchanger:
    """Makes exchanges, one after another, and waits for a store that is away.

    Args:
        store: where messages live.
        worker: the id of the worker.
        lease_seconds: how long a lease lasts.
        gauges: returns the state of the worker, sent with every heartbeat.

    Attributes:
        stop_asking: set when there is no more time.
        asked_at: when the last try was made, in monotonic seconds.
    """

    def __init__(
        self, store: Store, worker: UUID, lease_seconds: float, gauges: Callable[[], Mapping[str, Any]]
    ) -> None:
        self.stop_asking = anyio.Event()
        self.asked_at = 0.0
        self._store = store
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._gauges = gauges
        self._pump, self._n = uuid4(), 0
        self._outage = Outage(first=0.1)

    async def exchange(self, look: Look, *, again: bool = False) -> tuple[ExchangeAnswer, StoreError | None]:
        """Make one exchange, repeated under its number until it is answered.

        Args:
            look: what to report and to take.
            again: under the number of the one before, whose answer told of no messages.

        Returns:
            The answer; and, where it is that of an empty exchange, what the full one failed with: its reports were
            applied, and what it took is told without the messages.

        Raises:
            Unapplied: it failed for something in it, and nothing of it was applied.
            StoreError: there is no more time.
        """
        self._n += not again
        exchange = Exchange.carrying(
            look,
            worker=self._worker,
            pump=self._pump,
            n=self._n,
            lease_seconds=self._lease_seconds,
            gauges=self._gauges() if look.beat else None,
        )
        doubt: StoreError | None = None
        attempt = 0
        while True:
            self.asked_at = time.monotonic()
            try:
                answer = await self._store.exchange(exchange)
            except StoreError as error:
                attempt += 1
                if doubt is None and _is_loaded(look) and attempt >= remedy_of(error).tries:
                    doubt, exchange = error, exchange.emptied()
                    if error.nature in _DEFINITE:
                        continue
                elif doubt is not None and error.nature in _DEFINITE:
                    # An empty exchange can be refused only for wanting to take.
                    exchange.want = {}
                await self.sit_out(error)
                continue
            self.note_answer()
            if doubt is None:
                return answer, None
            if answer.repeated or (exchange.want and not (look.done or look.failed or look.renew)):
                # Either way the answer lists only places: ask for everything else again.
                answer.repeated = True
                return answer, doubt
            raise Unapplied(doubt, answer.leased)

    async def persist(self, step: Callable[[], Awaitable[None]], on: tuple[type[StoreError], ...]) -> None:
        """Await a step other than an exchange until it succeeds.

        Raises:
            StoreError: one that is not in `on`, or the last one when there is no more time.
        """
        while True:
            try:
                await step()
            except on as error:
                await self.sit_out(error)
            else:
                return

    async def sit_out(self, error: StoreError) -> None:
        """Log the error, and wait before the store is asked again; an operator may be mending it.

        Raises:
            StoreError: the very error, when there is no more time.
        """
        self.say(error)
        with anyio.move_on_after(self._outage.pause_seconds(remedy_of(error).longest_pause)):
            await self.stop_asking.wait()
        if self.stop_asking.is_set():
            raise error

    def say(self, error: StoreError) -> None:
        """Log a trouble of the store: once an outage, and once for each other kind of cause in it."""
        is_first = not self._outage
        if not self._outage.is_news(error.cause):
            return
        if not isinstance(error, StoreUnavailable):
            _log.error("the store cannot be used: %s Asking again until it can.", error)
        elif is_first:
            _log.warning("the store is away: %s Asking again until it answers.", error)
        else:
            _log.warning("the store still does not serve: %s", error)

    def note_answer(self) -> None:
        """Note that the store answers, and log it after an outage."""
        if self._outage.over():
            _log.info("the store answers again")


def _is_loaded(look: Look) -> bool:
    return bool(look.done or look.failed or look.want or look.renew)
