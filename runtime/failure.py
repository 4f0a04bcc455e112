"""What becomes of a delivery whose attempt ended in an error? Another attempt, later, or a dead letter."""

import logging
import traceback
from collections.abc import Sequence
from random import Random

from runtime.errors import InvalidPayload
from runtime.handler import Handler
from runtime.retry import Reject, RetryLater
from runtime.store import Delivery, Outcome, Report

_log = logging.getLogger("runtime.handlers")
_ERROR_CHARACTERS = 4_000
_TRACEBACK_CHARACTERS = 20_000


def failure(
    handler: Handler, delivery: Delivery, seconds: float, error: BaseException, random: Random
) -> Report:
    """Return what becomes of a delivery whose attempt ended in an error after so long, and log it once."""
    [report] = failures(handler, [delivery], seconds, error, random)
    return report


def failures(
    handler: Handler, deliveries: Sequence[Delivery], seconds: float, error: BaseException, random: Random
) -> list[Report]:
    """Return what becomes of deliveries whose common attempt ended in an error, and log it once."""
    if not deliveries:
        return []
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    trace = "".join(traceback.format_exception(error))
    kept = storable(text, _ERROR_CHARACTERS), storable(trace, _TRACEBACK_CHARACTERS)
    reports = [_report(handler, delivery, seconds, error, random, *kept) for delivery in deliveries]
    _log_failure(handler, reports, text, error)
    return reports


def _report(
    handler: Handler,
    delivery: Delivery,
    seconds: float,
    error: BaseException,
    random: Random,
    text: str,
    trace: str,
) -> Report:
    """What becomes of one delivery."""
    if handler.deliver == "each":
        return Report(delivery, seconds, "dead", reason="failed", error=text)
    if isinstance(error, RetryLater):
        return Report(delivery, seconds, "later", delay=error.seconds, error=text)
    # What is no Exception, such as a SystemExit, is a failure like any other here.
    cause = error if isinstance(error, Exception) else RuntimeError(text)
    delay = handler.retry.decide(cause, _attempt(delivery), random)
    reason = (
        "rejected"
        if isinstance(error, Reject)
        else "invalid"
        if isinstance(error, InvalidPayload)
        else "failed"
    )
    outcome: Outcome = "dead" if delay is None else "failed"
    return Report(delivery, seconds, outcome, reason=reason, delay=delay, error=text, traceback=trace)


def _attempt(delivery: Delivery) -> int:
    """Crashes count for themselves, so they use up no attempt of the handler's."""
    return delivery.message.attempt - delivery.crashes


def _log_failure(handler: Handler, reports: Sequence[Report], text: str, error: BaseException) -> None:
    first = reports[0].delivery.message
    details = {
        "agent": handler.agent, "handler": handler.name, "key": first.key, "message_id": first.id,
        "attempt": first.attempt,
    }  # fmt: skip
    which = f"message {first.id}" if len(reports) == 1 else f"{len(reports)} messages, {first.id} the first"
    if handler.deliver == "each":
        _log.warning("%s failed on %s: %s; nothing is kept of it", handler.name, which, text, extra=details)
        return
    if isinstance(error, RetryLater):
        _log.info("%s put %s off: %s", handler.name, which, error.why, extra=details)
        return
    soonest = min((report.delay for report in reports if report.delay is not None), default=None)
    dead = sum(report.delay is None for report in reports)
    then = (
        f"{'it is a dead letter' if len(reports) == 1 else f'{dead} are dead letters'} now"
        if dead
        else f"trying again in {soonest:.1f} s"
    )
    _log.warning(
        "%s failed on %s (attempt %s): %s; %s",
        handler.name,
        which,
        _attempt(reports[0].delivery),
        text,
        then,
        extra=details,
    )


def storable(text: str, limit: int) -> str:
    """The text as PostgreSQL can keep it, its end rather than its beginning when it is long."""
    cleaned = text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return cleaned if len(cleaned) <= limit else f"… {cleaned[-limit:]}"
