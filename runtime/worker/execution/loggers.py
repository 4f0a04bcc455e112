"""The runtime's own loggers, which neither end the work nor fall silent.

A handler, a filter or a record factory of the user's may raise; then the line is lost, and whoever wrote it goes on.
`logging.config.dictConfig` switches off every logger it does not name, unless it is told otherwise; these stay on.
A traceback is written here, since the exception may be one that raises when it is looked at.
"""

import logging
from typing import Any, Final

from runtime.tracebacks import trace_of

_ROOT: Final = "runtime"


class SteadyLogger(logging.Logger):
    """A logger that never raises, and that only its level can silence."""

    @property
    def disabled(self) -> bool:
        """Never: its level says what is written."""
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        """Nothing."""

    def isEnabledFor(self, level: int) -> bool:
        """Whether its level lets this one pass; `logging.disable` of a handler is for the handler's own lines."""
        return level >= self.getEffectiveLevel()

    def makeRecord(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        """A record; a plain one where the user's factory makes none."""
        try:
            return super().makeRecord(*arguments, **named)
        except KeyError:
            # A mistake in the logging call itself.
            raise
        except BaseException:  # noqa: BLE001 - the factory may be the user's
            name, level, file, line, text, values, exc_info = arguments[:7]
            return logging.LogRecord(name, level, file, line, text, values, exc_info)

    def handle(self, record: logging.LogRecord) -> None:
        """Write a record where users want it; lose it where that fails."""
        try:
            if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
                record.exc_text, record.exc_info = trace_of(record.exc_info[1]).rstrip(), None
            super().handle(record)
        except BaseException:  # noqa: BLE001 - a handler or filter may be the user's, and a lost line is all that follows
            return


def steady() -> None:
    """Make every logger of the runtime that there is a steady one; repeated where modules are loaded later."""
    for name, logger in tuple(logging.Logger.manager.loggerDict.items()):
        if (name == _ROOT or name.startswith(f"{_ROOT}.")) and type(logger) is logging.Logger:
            logger.__class__ = SteadyLogger
