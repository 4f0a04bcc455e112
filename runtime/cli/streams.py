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

# How long a write waits for a slow reader before the line is dropped.
_PATIENCE_SECONDS: Final = 1.0
# How often a command that only prints looks whether its reader is still there.
_LOOK_SECONDS: Final = 0.25


class _Descriptor(io.BufferedIOBase):
    """A file descriptor as a stream without a buffer: each write is complete when it returns.

    Not a BufferedWriter: text is buffered above it already, and in a forked child its lock may be held for ever by a
    thread that does not exist there.

    Args:
        number: the descriptor.

    Attributes:
        name: Python's name of the stream.
        goes_on: whether text that cannot be written is dropped.
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
            OSError: its reader has left, and `goes_on` is not set.
        """
        with self._lock, memoryview(data).cast("B") as left:
            written = 0
            while written < len(left):
                try:
                    written += os.write(self._number, left[written:])
                except BlockingIOError:
                    # Another process that shares this pipe has made it non-blocking.
                    _, ready, _ = select.select((), (self._number,), (), _PATIENCE_SECONDS)
                    if self.goes_on and not ready:
                        break
                except OSError:
                    if not self.goes_on:
                        raise
                    break
            return len(left)

    def begin_child(self) -> None:
        """Replace the lock in a forked child: the thread that held it does not exist there."""
        self._lock = threading.RLock()


def guard() -> None:
    """Replace Python's own streams, which may raise at any write."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


def go_on() -> None:
    """Drop text that cannot be written from now on: the command's work matters more than its output."""
    for stream in (sys.stdout, sys.stderr):
        written = getattr(stream, "buffer", None)
        if isinstance(written, _Descriptor):
            written.goes_on = True


async def watch_reader() -> None:
    """Wait until the reader of standard output leaves, which a command that prints rarely would not notice.

    Raises:
        BrokenPipeError: it has left.
    """
    # Imported here: the list of commands is printed without it.
    from anyio import sleep

    if not hasattr(select, "poll"):
        return
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    poller = select.poll()
    poller.register(number, 0)
    while not any(event & (select.POLLERR | select.POLLNVAL) for _, event in poller.poll(0)):  # noqa: ASYNC110 - a pipe tells nobody
        await sleep(_LOOK_SECONDS)
    raise BrokenPipeError


def fall_silent() -> None:
    """Write no more to standard output, whose reader has left; not at exit either."""
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
    # The old stream is empty: Python flushes it at exit, when its reader may have left.
    return io.TextIOWrapper(
        written,
        encoding=stream.encoding,
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
