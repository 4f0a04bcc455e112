"""The line at which the event loop of the handlers stands still, as another thread sees it."""

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.agent.callables import innermost
from runtime.agent.handler import Handler
from runtime.tracebacks import place_in_stack


@dataclass(frozen=True, slots=True)
class Standstill:
    """What holds up an event loop.

    Attributes:
        handler: the name of the handler that runs; empty for code outside of handlers, such as a task of the user's.
        place: the innermost line of the user's own code, as `/app/shop.py:12 in pack`; empty if there is none.
        line: the text of that line; empty where it cannot be read.
    """

    handler: str
    place: str
    line: str


class StandstillFinder:
    """Looks at what the thread of an event loop does.

    Args:
        handlers: those that may run there. It is made on the loop that is to be looked at.
    """

    def __init__(self, handlers: Iterable[Handler]) -> None:
        self._thread = threading.get_ident()
        codes = ((innermost(handler.function), handler.name) for handler in handlers)
        self._names = {function.__code__: name for function, name in codes if function is not None}

    def find(self) -> Standstill:
        """Return what the loop's thread does now. From another thread."""
        top = frame = sys._current_frames().get(self._thread)
        name = ""
        while frame is not None and not name:
            name = self._names.get(frame.f_code, "")
            frame = frame.f_back
        place, line = place_in_stack(top) or ("", "")
        return Standstill(name, place, line)
