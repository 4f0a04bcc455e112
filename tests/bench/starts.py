"""When did each handler start? A file in memory that a worker writes and the bench reads while it runs."""

import mmap
import time
from pathlib import Path

NUMBERED = 1 << 16
"""Messages with a number from here on are counted, and their moments are not kept."""

_FIRST, _LAST, _COUNT, _READY, _HEAD = range(5)
_SIZE = 8 * (_HEAD + NUMBERED)


class Starts:
    """The starts of handlers in one process, by the monotonic clock, which all processes share.

    One process writes: counting takes no lock.

    Args:
        path: of the file, made by `create`.

    Attributes:
        path: the same.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        with open(path, "r+b") as file:
            self._slots = memoryview(mmap.mmap(file.fileno(), _SIZE)).cast("Q")

    @classmethod
    def create(cls, path: Path) -> "Starts":
        """A file in which nothing has started."""
        with path.open("wb") as file:
            file.truncate(_SIZE)
        return cls(path)

    def note(self, number: int) -> None:
        """The handler of this message starts now."""
        slots, now = self._slots, time.monotonic_ns()
        if slots[_COUNT] == 0:
            slots[_FIRST] = now
        slots[_LAST] = now
        slots[_COUNT] += 1
        if number < NUMBERED:
            slots[_HEAD + number] = now

    def note_ready(self) -> None:
        """The worker waits for work."""
        self._slots[_READY] = 1

    @property
    def is_ready(self) -> bool:
        """Whether the worker has said that it waits for work."""
        return bool(self._slots[_READY])

    @property
    def count(self) -> int:
        """How many have started."""
        return self._slots[_COUNT]

    @property
    def first(self) -> int:
        """Nanoseconds of the first start; 0 before it."""
        return self._slots[_FIRST]

    @property
    def last(self) -> int:
        """Nanoseconds of the latest start; 0 before the first."""
        return self._slots[_LAST]

    def of(self, number: int) -> int:
        """Nanoseconds of the latest start for this message; 0 when there was none."""
        return self._slots[_HEAD + number]
