"""What becomes of a delivery whose attempt ended in an error? Another attempt, later, or a dead letter."""

import logging
import traceback
from random import Random

from runtime.agent import Handler
from runtime.errors import InvalidPayload
from runtime.retry import Reject, RetryLater
from runtime.store import Delivery, Report

_log = logging.getLogger("runtime.handlers")
_ERROR_CHARACTERS = 4_000
_TRACEBACK_CHARACTERS = 20_000


def failure(
    handler: Handler, delivery: Delivery, seconds: float, error: BaseException, random: Random
) -> Report:
    """Return what becomes of a delivery whose attempt ended in an error after so long, and log it once."""
    message = delivery.message
    # Crashes count for themselves, so they use up no attempt of the handler's.
    attempt = message.attempt - delivery.crashes
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    trace = "".join(traceback.format_exception(error))
    details = {
        "agent": handler.agent, "handler": handler.name, "key": message.key, "message_id": message.id,
        "attempt": message.attempt,
    }  # fmt: skip
    if handler.deliver == "each":
        _log.warning(
            "%s failed on message %s: %s; nothing is kept of it",
            handler.name, message.id, text, extra=details,
        )  # fmt: skip
        return Report(delivery, seconds, "dead", reason="failed", error=storable(text, _ERROR_CHARACTERS))
    if isinstance(error, RetryLater):
        _log.info("%s put message %s off: %s", handler.name, message.id, error.why, extra=details)
        return Report(
            delivery, seconds, "later", delay=error.seconds, error=storable(text, _ERROR_CHARACTERS)
        )
    # What is no Exception, such as a SystemExit, is a failure like any other here.
    cause = error if isinstance(error, Exception) else RuntimeError(text)
    delay = handler.retry.decide(cause, attempt, random)
    reason = (
        "rejected"
        if isinstance(error, Reject)
        else "invalid"
        if isinstance(error, InvalidPayload)
        else "failed"
    )
    then = "it is a dead letter now" if delay is None else f"trying again in {delay:.1f} s"
    _log.warning(
        "%s failed on message %s (attempt %s): %s; %s",
        handler.name,
        message.id,
        attempt,
        text,
        then,
        extra=details,
    )
    return Report(
        delivery,
        seconds,
        "dead" if delay is None else "failed",
        reason=reason,
        delay=delay,
        error=storable(text, _ERROR_CHARACTERS),
        traceback=storable(trace, _TRACEBACK_CHARACTERS),
    )


def storable(text: str, limit: int) -> str:
    """The text as PostgreSQL can keep it, its end rather than its beginning when it is long."""
    cleaned = text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return cleaned if len(cleaned) <= limit else f"… {cleaned[-limit:]}"
