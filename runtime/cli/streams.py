"""Standard output and error whose reader may go away: `head` that has seen enough, a log shipper that restarts.

A command that shows something ends quietly then. One that works goes on without its lines, and so do the handlers of
agents that print.
"""

import io
import os
import select
import sys
import threading
from typing import Any, Final, TextIO

# What a reader that is slow gets, before a line is left out for it.
_PATIENCE_SECONDS: Final = 1.0


class _Descriptor(io.BufferedIOBase):
    """A descriptor that is written to, all of what is given at once.

    A BufferedWriter would be no use, since text is gathered before it gets here, and in a forked child its lock may be
    held for ever by a thread that is not there.

    Args:
        number: the descriptor.

    Attributes:
        name: what Python calls it.
        goes_on: whether what cannot be written is left out.
    """

    def __init__(self, number: int) -> None:
        self.name = self._number = number
        self._lock = threading.RLock()
        self.goes_on = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        """Write all of it, and return how much that was.

        Raises:
            OSError: nobody can read it, and the command is there to be read.
        """
        with self._lock, memoryview(data).cast("B") as left:
            written = 0
            while written < len(left):
                try:
                    written += os.write(self._number, left[written:])
                except BlockingIOError:
                    # Somebody else who has this pipe has made it one that does not wait.
                    _, ready, _ = select.select((), (self._number,), (), _PATIENCE_SECONDS)
                    if self.goes_on and not ready:
                        break
                except OSError:
                    if not self.goes_on:
                        raise
                    break
            return len(left)

    def begin_child(self) -> None:
        """In a forked child: whichever thread was writing is not there."""
        self._lock = threading.RLock()


def guard() -> None:
    """Put streams in place of Python's own, which may raise whenever they are written to."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


def go_on() -> None:
    """From now on leave out what cannot be written, for a command that works and is not there to be read."""
    for stream in (sys.stdout, sys.stderr):
        written = getattr(stream, "buffer", None)
        if isinstance(written, _Descriptor):
            written.goes_on = True


def fall_silent() -> None:
    """Say nothing more on standard output, whose reader has left: not at the exit either."""
    go_on()


def _guarded(stream: TextIO) -> TextIO:
    if stream is None or type(stream) is not io.TextIOWrapper:
        return stream
    try:
        written = _Descriptor(stream.fileno())
        stream.flush()
    except (OSError, ValueError):
        return stream
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=written.begin_child)
    # Whoever flushes the old one at the exit finds nothing in it.
    return io.TextIOWrapper(
        written,
        encoding=stream.encoding,
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
