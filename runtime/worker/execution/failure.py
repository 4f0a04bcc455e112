"""Failures: an attempt that ended in an error is followed by another one, later, or by a dead letter."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from runtime.agent.callables import place_of
from runtime.agent.handler import Handler
from runtime.agent.refusal import refused_seconds
from runtime.agent.retry import LONGEST_SECONDS, Reject, Retry, RetryLater, is_a, is_delay, later_seconds
from runtime.errors import InvalidPayload, RuntimeFault
from runtime.store import Delivery, Outcome, Report
from runtime.tracebacks import exc_info_of, members_of, places_of, text_of, trace_of
from runtime.worker.execution.mistakes import recognized

_log = logging.getLogger("runtime.handlers")
_ERROR_CHARACTERS = 4_000
_TRACEBACK_CHARACTERS = 20_000
# Their texts say what to do, and their tracebacks nothing more.
_SELF_EXPLAINING = (Reject, RuntimeFault)


@dataclass(frozen=True, slots=True)
class _ErrorText:
    """An error as text that can be stored and logged, made once however the error behaves.

    Attributes:
        error: the error that the retry decides about.
        text: its class and its words.
        trace: its traceback.
        places: where it was raised in the user's own code, as `; raised at …`, or where the handler is declared; empty
            where the text says it.
        hold: for how many seconds a provider lets nobody through, where that is the error; it is a RetryLater then.
    """

    error: BaseException
    text: str
    trace: str
    places: str
    hold: float | None = None

    @classmethod
    def of(cls, handler: Handler, error: BaseException) -> "_ErrorText":
        places = places_of(error)
        error = recognized(error) or error
        text = storable(text_of(error), _ERROR_CHARACTERS)
        trace = storable(trace_of(error), _TRACEBACK_CHARACTERS)
        where = _where(handler, places, text)
        hold = refused_seconds(error)
        if hold is not None and handler.deliver == "once" and handler.retry.may_follow(error):
            text = f"{text} (the provider lets requests through again in {hold:g} s)"
            return cls(RetryLater(hold, text), text, trace, where, hold)
        return cls(error, text, trace, where)


def _where(handler: Handler, places: Sequence[str], text: str) -> str:
    """Say where an error comes from, unless its text does."""
    if not places and handler.target is not None:
        return ""
    place = places[0] if places else place_of(handler.function)
    if place in text:
        return ""
    return f"; raised at {', called from '.join(places)}" if places else f"; the handler is at {place}"


def failure(
    handler: Handler,
    delivery: Delivery,
    seconds: float,
    error: BaseException,
    random: Random,
    *,
    undoes: bool = False,
) -> Report:
    """Return the report on a delivery whose attempt ended in an error after so long, and log it.

    `undoes`: if it dies, its finished steps are undone first.
    """
    (report,) = failures(handler, [delivery], seconds, error, random, undoes=undoes)
    return report


def failures(
    handler: Handler,
    deliveries: Sequence[Delivery],
    seconds: float,
    error: BaseException,
    random: Random,
    *,
    undoes: bool = False,
) -> list[Report]:
    """Return the reports on deliveries whose common attempt ended in an error, and log it once."""
    if not deliveries:
        return []
    told = _ErrorText.of(handler, error)
    reports = [_report(handler, delivery, seconds, told, random) for delivery in deliveries]
    _log_failure(handler, reports, told, undoes=undoes)
    if undoes:
        for report in reports:
            # The undos are due at once, and most likely by this worker.
            report.delay = 0.0 if report.delay is None else report.delay
    return reports


def _report(handler: Handler, delivery: Delivery, seconds: float, told: _ErrorText, random: Random) -> Report:
    """The report on one delivery."""
    if handler.deliver == "each":
        return Report(delivery, seconds, "dead", reason="failed", error=told.text)
    delay = _delay(handler, told, _attempt(delivery), random)
    if delay is not None and _is_put_off(told.error):
        return Report(delivery, seconds, "later", delay=delay, hold=told.hold, error=told.text)
    members = members_of(told.error)
    reason = (
        "rejected"
        if any(is_a(each, (Reject,)) for each in members)
        else "invalid"
        if any(is_a(each, (InvalidPayload,)) for each in members)
        else "failed"
    )
    outcome: Outcome = "dead" if delay is None else "failed"
    return Report(
        delivery, seconds, outcome, reason=reason, delay=delay, error=told.text, traceback=told.trace
    )


def _delay(handler: Handler, told: _ErrorText, attempt: int, random: Random) -> float | None:
    """The seconds until the next attempt, or None for a dead letter."""
    retry = handler.retry
    members = members_of(told.error)
    if any(not is_a(each, (Exception,)) and is_a(each, retry.never_on) for each in members):
        return None
    try:
        delay = retry.decide(_as_exceptions(members, told), attempt, random)
        if delay is None or is_delay(delay):
            return None if delay is None else min(delay, LONGEST_SECONDS)
        raise ValueError("it is no number of seconds")
    except BaseException as error:  # noqa: BLE001 - a Retry of the user's own
        _log.error("the retry of %s cannot decide, so the usual one does: %s", handler.name, text_of(error))
        return Retry().decide(RuntimeError(told.text), attempt, random)


def _as_exceptions(members: Sequence[BaseException], told: _ErrorText) -> BaseException:
    """The error to decide by: what is no Exception, such as a SystemExit, is a failure like any other here."""
    if all(is_a(each, (Exception,)) for each in members):
        return told.error
    exceptions = [each if isinstance(each, Exception) else RuntimeError(text_of(each)) for each in members]
    return exceptions[0] if len(exceptions) == 1 else ExceptionGroup(told.text, exceptions)


def _is_put_off(error: BaseException) -> bool:
    return any(later_seconds(each) is not None for each in members_of(error))


def _attempt(delivery: Delivery) -> int:
    """Crashes count for themselves, so they use up no attempt of the handler's."""
    return delivery.message.attempt - delivery.crashes


def _log_failure(
    handler: Handler, reports: Sequence[Report], told: _ErrorText, *, undoes: bool = False
) -> None:
    first = reports[0].delivery.message
    details = {
        "agent": handler.agent, "handler": handler.name, "key": first.key, "message_id": first.id,
        "attempt": first.attempt,
    }  # fmt: skip
    which = f"message {first.id}" if len(reports) == 1 else f"{len(reports)} messages, {first.id} the first"
    if handler.deliver == "each":
        _log.warning(
            "%s failed on %s: %s; nothing is kept of it%s",
            handler.name, which, told.text, told.places, extra=details,
        )  # fmt: skip
        return
    if all(report.outcome == "later" for report in reports):
        _log.info("%s put %s off: %s", handler.name, which, _why(told), extra=details)
        return
    soonest = min((report.delay for report in reports if report.delay is not None), default=None)
    dead = sum(report.delay is None for report in reports)
    then = (
        "its finished steps are undone now"
        if dead and undoes
        else f"{'it is a dead letter' if len(reports) == 1 else f'{dead} are dead letters'} now"
        if dead
        else f"trying again in {soonest:.1f} s"
    )
    # The last attempt's traceback: earlier ones are in the database, and mostly the same.
    shows_trace = dead and not any(is_a(each, _SELF_EXPLAINING) for each in members_of(told.error))
    _log.warning(
        "%s failed on %s (attempt %s): %s; %s%s",
        handler.name, which, _attempt(reports[0].delivery), told.text.rstrip("."), then, told.places,
        exc_info=exc_info_of(told.error) if shows_trace else None, extra=details,
    )  # fmt: skip


def _why(told: _ErrorText) -> str:
    """Why a handler puts a delivery off, in its own words."""
    return told.error.why if type(told.error) is RetryLater else told.text


def storable(text: str, limit: int) -> str:
    """The text as PostgreSQL can keep it, its end rather than its beginning when it is long."""
    # Cut before it is cleaned: a text may be as large as the memory holds.
    kept = text[-limit:] if len(text) > limit else text
    cleaned = kept.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return cleaned if len(text) <= limit else f"… {cleaned}"
