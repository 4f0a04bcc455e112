"""The isolation of one report or message for which whole exchanges fail.

A report may be too large for a front, or a message may not pass one. Exchanges get smaller until one delivery is alone
with the fault: then that delivery fails, and no other has to wait for it.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

from runtime.agent.handler import Handler
from runtime.errors import StoreError
from runtime.store import Delivery, ExchangeAnswer, Look, Report
from runtime.store.sqlstates import remedy_of
from runtime.worker.exchanger import Exchanger, Unapplied
from runtime.worker.execution.failure import failure
from runtime.worker.plan import Plan

_log = logging.getLogger("runtime.worker.dispatcher")


def name_of(handlers: Mapping[int, Handler], subscription: int) -> str:
    """Return the name of a subscription; its number, where this worker has no handler for it."""
    handler = handlers.get(subscription)
    return handler.name if handler else f"subscription {subscription}"


@dataclass
class Isolation:
    """Carries on after exchanges that failed for something in them.

    Attributes:
        plan: the plan of the pump, with the deliveries that are held and the reports that wait.
        exchanger: makes further exchanges.
        handlers: by the number of their subscription; more may be added.
        slow_seconds: how long nothing is taken where the store refuses every exchange that takes.
        absorb: called with what was sent, its answer, and when it was sent.
        wants_refused: how often in a row an exchange was refused for taking anything.
    """

    plan: Plan
    exchanger: Exchanger
    handlers: Mapping[int, Handler]
    slow_seconds: float
    absorb: Callable[[Look, ExchangeAnswer, float], None]
    wants_refused: int = 0
    _random: Random = field(default_factory=Random)

    async def carry_less(self, look: Look, fault: Unapplied) -> None:
        """Find what in an exchange keeps all of it from being applied, and let everything else go on."""
        reports, remedy = look.reports, remedy_of(fault.error)
        await self._give_back(fault.leased)
        if len(reports) == 1 and not look.want:
            await self._judge(reports[0], fault.error)
        elif reports or (look.want and fault.leased):
            self.plan.put_back(look, time.monotonic(), by=remedy.shrinks_by)
        elif look.want:
            # Refused for wanting anything, not for how much it wants; or the cause was mended meanwhile.
            self.wants_refused += 1
            self.plan.put_back(look, time.monotonic(), by=1)
            if self.wants_refused > 1:
                self.exchanger.say(fault.error)
                self.plan.put_off(time.monotonic() + self.slow_seconds)
        else:
            await self._renew_each(look)

    async def _judge(self, report: Report, error: StoreError) -> None:
        """Put aside a report that fails alone while an empty exchange passes, or make a failed attempt of it."""
        message, subscription = report.delivery.place
        aside = self.plan.outbox.delay(report, time.monotonic())
        if aside.tries >= remedy_of(error).blames:
            await self._fail_instead(report, error)
        elif aside.tries == 1:
            _log.warning(
                "the report of %s on message %s waits, and others go on: %s It is tried again until it passes.",
                name_of(self.handlers, subscription), message, error,
            )  # fmt: skip

    async def _fail_instead(self, report: Report, reason: StoreError) -> None:
        """Report an attempt whose report cannot pass as a failed one."""
        handler = self.handlers[report.delivery.subscription]
        # The runtime's own frames help no one, and a front that refused the report would read them too.
        reason = reason.with_traceback(None)
        reason.__cause__ = reason.__context__ = None
        failed = failure(handler, report.delivery, report.seconds, reason, self._random)
        plain = replace(failed, error="its report was refused; the worker's log says why", traceback=None)
        for each in (failed, plain):
            look, sent_at = Look(failed=[each]), time.monotonic()
            try:
                answer, _ = await self.exchanger.exchange(look)
            except Unapplied as again:
                reason = again.error
            else:
                self.absorb(look, answer, sent_at)
                return
        # The lease of the delivery will lapse; nothing else can be done from here.
        _log.error("message %s cannot even be reported as failed: %s", report.delivery.place[0], reason)
        self.plan.forget(report.delivery)

    async def have(self, look: Look, leased: Sequence[Delivery], doubt: StoreError) -> None:
        """Get messages that did not arrive although they are leased: a few at a time, in the end one alone."""
        remedy = remedy_of(doubt)
        if len(leased) > 1 or remedy.blames == math.inf:
            await self._give_back(leased)
            self.plan.outbox.bounds.shrink_taking(len(leased), remedy.shrinks_by)
            return
        single = Look(want=look.want, due=look.due, alone=look.alone)
        again: StoreError | None = doubt
        for _ in range(int(remedy.blames) - 1):
            # The exchange that listed the delivery has renewed its lease.
            sent_at = self.exchanger.asked_at
            answer, again = await self.exchanger.exchange(single, again=True)
            if again is None or not answer.leased:
                self.absorb(single, answer, sent_at)
                return
        message, subscription = leased[0].place
        text = f"{type(again).__name__}: the message does not arrive, while everything else does: {again}"
        _log.error(
            "message %s for %s is a dead letter: %s", message, name_of(self.handlers, subscription), text
        )
        await self._report_apart([Report(leased[0], outcome="dead", reason="failed", error=text)])

    async def _give_back(self, leased: Sequence[Delivery]) -> None:
        """Give back what was leased and not begun."""
        if leased:
            await self._report_apart([Report(delivery, outcome="released") for delivery in leased])

    async def _report_apart(self, reports: list[Report]) -> None:
        """Report deliveries that never began here."""
        look, sent_at = Look(failed=reports), time.monotonic()
        try:
            answer, _ = await self.exchanger.exchange(look)
        except Unapplied as fault:
            _log.warning("%d deliveries are left to come due again: %s", len(reports), fault.error)
        else:
            self.absorb(look, answer, sent_at)

    async def _renew_each(self, look: Look) -> None:
        """Renew leases one by one that could not be renewed together, so that one of them holds up no other."""
        if len(look.renew) == 1:
            return
        for delivery in look.renew:
            single, sent_at = Look(renew=[delivery]), time.monotonic()
            with suppress(Unapplied):
                answer, _ = await self.exchanger.exchange(single)
                self.absorb(single, answer, sent_at)
