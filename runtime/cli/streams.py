"""Standard output and error whose reader may go away: `head` that has seen enough, a log shipper that restarts.

A command that shows something ends quietly then. One that works goes on without its lines, and so do the handlers of
agents that print.
"""

import io
import os
import select
import sys
from typing import Any, Final, TextIO

# What a reader that is slow gets, before a line is left out for it.
_PATIENCE_SECONDS: Final = 1.0


class _Descriptor(io.RawIOBase):
    """A descriptor that is written to.

    Args:
        number: the descriptor.
        goes_on: whether what cannot be written is left out.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self.goes_on = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        """Write some of it, and return how much.

        Raises:
            OSError: nobody can read it, and the command is there to be read.
        """
        try:
            return os.write(self._number, data)
        except BlockingIOError:
            # Somebody else who has this pipe has made it one that does not wait.
            select.select((), (self._number,), (), _PATIENCE_SECONDS)
            return 0 if not self.goes_on else len(data)
        except OSError:
            if not self.goes_on:
                raise
            return len(data)


def guard() -> None:
    """Put streams in place of Python's own, which may raise whenever they are written to."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


def go_on() -> None:
    """From now on leave out what cannot be written, for a command that works and is not there to be read."""
    for stream in (sys.stdout, sys.stderr):
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if isinstance(raw, _Descriptor):
            raw.goes_on = True


def fall_silent() -> None:
    """Say nothing more on standard output, whose reader has left: not at the exit either."""
    go_on()


def _guarded(stream: TextIO) -> TextIO:
    if stream is None or type(stream) is not io.TextIOWrapper:
        return stream
    try:
        raw = _Descriptor(stream.fileno())
        stream.flush()
    except (OSError, ValueError):
        return stream
    # Whoever flushes the old one at the exit finds nothing in it.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
