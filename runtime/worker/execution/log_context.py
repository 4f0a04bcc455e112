"""The attempt that a log record belongs to: also for the code that a handler calls, in tasks and threads too.

Each attempt runs in a context of its own, and notes itself there; `of_attempt` puts that on the records.
"""

import logging
from contextvars import ContextVar

from runtime.agent.context import Context

# Set in the context of an attempt, from which that of its tasks and threads is copied.
attempt: ContextVar[Context | None] = ContextVar("attempt", default=None)


def of_attempt(record: logging.LogRecord) -> bool:
    """Put agent, handler, key, message_id, attempt and worker on a record, where it has none of its own.

    A filter for `logging.Handler.addFilter`; `runtime run` has it in place.
    """
    if (context := attempt.get()) is not None:
        record.__dict__.update(context.labels | record.__dict__)
    return True
