"""Ctrl-C and SIGTERM in a process that runs user code: they end it, whatever that code does.

An event loop sees a signal only when it runs, and a handler may block it. So the signals wake a thread here, and the
process ends in time as long as Python runs at all:

    the first    no new work, and an end when what runs has ended; at the latest after the drain and ten seconds
    the second   an end within a second or so, with exit code 130 or 143
    afterwards   threads that do not end are left behind after ten seconds
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from runtime.worker.execution import fork

Heed = Callable[[signal.Signals], None]

_HEEDED: Final = (signal.SIGINT, signal.SIGTERM)
_GRACE_SECONDS: Final = 10.0
_HURRY_SECONDS: Final = 1.0


@contextmanager
def heeded(
    stop: Heed, hurry: Heed, *, drain_seconds: float, say: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Heed the signals while the block lasts; entered on the main thread, on a loop that runs.

    Args:
        stop: called at the first, from any thread; it returns at once.
        hurry: called at each further one, likewise.
        drain_seconds: how long what runs may take after the first.
        say: prints why the process ends though something still runs in it; it takes no lock. By default it is a line
            on stderr.
    """
    signals = _Signals(stop, hurry, drain_seconds, say or _write)
    signals.begin()
    forget = fork.in_each_child(signals.forget)
    try:
        yield
    finally:
        forget()
        signals.end()


class _Signals:
    """The signals so far. Python reports each in two ways, and user code may replace either: the higher count holds."""

    def __init__(self, stop: Heed, hurry: Heed, drain_seconds: float, say: Callable[[str], object]) -> None:
        self._stop = stop
        self._hurry = hurry
        self._drain_seconds = drain_seconds
        self._say = say
        self._lock = threading.RLock()
        self._heard = {"descriptor": 0, "handler": 0}
        self._count = 0
        self._ours, self._theirs = socket.socketpair()
        # `socket.setdefaulttimeout` of a user's module counts for these too.
        self._ours.settimeout(None)
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_fd = -1

    def begin(self) -> None:
        self._theirs.setblocking(False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        for number in _HEEDED:
            self._previous[number] = signal.signal(number, lambda got, _: self._hear("handler", got))
        # After the handlers: the loop that runs has a descriptor of its own there, which gets nothing meanwhile.
        self._previous_fd = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)

    def end(self) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        with suppress(OSError):
            self._theirs.send(b"\0")
        if self._count:
            # Threads of user code, which cannot be stopped, and exit handlers may still run.
            self._end_after(_GRACE_SECONDS, 0, "threads of handlers do not end, so they are left behind")

    def forget(self) -> None:
        """In a forked child: signals are as in a fresh process."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _listen(self) -> None:
        while True:
            for number in self._ours.recv(64):
                if number == 0:
                    return
                if number in _HEEDED:
                    self._hear("descriptor", number)

    def _hear(self, way: str, got: int) -> None:
        number = signal.Signals(got)
        with self._lock:
            self._heard[way] += 1
            if self._heard[way] <= self._count:
                return
            self._count += 1
            is_first = self._count == 1
        # In a thread of its own: the main one may hold any lock when Python has it handle a signal.
        threading.Thread(target=self._heed, args=(number, is_first), name="heed", daemon=True).start()

    def _heed(self, number: signal.Signals, is_first: bool) -> None:
        if is_first:
            self._end_after(
                self._drain_seconds + _GRACE_SECONDS, 1, "a handler does not end, so it is left behind"
            )
            self._stop(number)
        else:
            self._end_after(_HURRY_SECONDS, 128 + number, "")
            self._hurry(number)

    def _end_after(self, seconds: float, code: int, why: str) -> None:
        """End the process whatever still runs in it, if it has not ended by then."""

        def end() -> None:
            threading.Event().wait(seconds)
            if why:
                with suppress(BaseException):
                    self._say(why)
            os._exit(code)

        threading.Thread(target=end, name="end", daemon=True).start()


def _write(text: str) -> None:
    sys.stderr.write(f"{text}.\n")
