"""What did senders see committed, and what did handlers do? Written by the test itself, never read from the kernel."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = "CHAOS_LEDGER"


@dataclass(frozen=True, slots=True)
class Chain:
    """One message a sender sent, and when; times are of the machine's monotonic clock, in seconds."""

    number: int
    lane: int
    sent_at: float
    committed_at: float
    message: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt a handler brought to its end."""

    handler: str
    message: int
    number: int
    attempt: int
    began: float
    ended: float


@dataclass
class Ledger:
    """Everything that was noted in one campaign.

    Attributes:
        driven: what each feature's script saw committed, in notes of its own.
    """

    chains: list[Chain] = field(default_factory=list)
    bulks: dict[str, int] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    driven: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def read(self, folder: Path) -> None:
        """Take in what the handlers' processes have written; the last line of a killed one may be half."""
        for path in folder.glob("*.jsonl"):
            for line in path.read_text().splitlines():
                try:
                    self.entries.append(Entry(*json.loads(line)))
                except (ValueError, TypeError):
                    continue

    def by_message(self) -> dict[tuple[str, int], list[Entry]]:
        """The entries of each handler and message."""
        found: dict[tuple[str, int], list[Entry]] = defaultdict(list)
        for entry in self.entries:
            found[entry.handler, entry.message].append(entry)
        return found


class Notes:
    """One process's page of the ledger: a line is one write to the end of a file of its own."""

    def __init__(self) -> None:
        folder = Path(os.environ[FOLDER])
        self._file = os.open(
            folder / f"{os.getpid()}-{time.monotonic_ns()}.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY
        )

    @contextmanager
    def attempt(self, handler: str, message: Any, number: int) -> Iterator[None]:
        """Note an attempt when it has come to its end."""
        began = time.monotonic()
        yield
        entry = [handler, message.id, number, message.attempt, began, time.monotonic()]
        os.write(self._file, json.dumps(entry).encode() + b"\n")
