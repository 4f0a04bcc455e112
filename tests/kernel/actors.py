"""Who acts on a kernel? Workers with what they hold, writers with what they have not committed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.kernel.driver import Answer, Taken, Worker
from tests.kernel.model import Draft, Message
from tests.kernel.state import Place, State

STRICT = ("repeatable read", "serializable")


class Busy(Exception):
    """An open transaction holds what a step needs; nothing has happened."""


class Serialization(Exception):
    """A stricter transaction met a change younger than its snapshot; it is over."""


@dataclass
class Report:
    """What a worker says of one delivery it took."""

    taken: Taken
    outcome: str
    delay: int = 0
    emits: list[Draft] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    """The names of the waits that it is suspended over."""

    def wire(self) -> dict[str, Any]:
        """As done, failed and renew take it."""
        if self.outcome == "renew":
            return self.taken.report()
        if self.outcome == "done":
            return self.taken.report(
                seconds=0.1, **({"emits": [d.wire() for d in self.emits]} if self.emits else {})
            )
        if self.outcome == "suspended":
            places = [[name, "", 1] for name in self.waits]
            return self.taken.report(seconds=0.1, outcome="suspended", delay=self.delay, waits=places)
        return self.taken.report(
            seconds=0.1, outcome=self.outcome, delay=self.delay, error="no", traceback="…"
        )


@dataclass
class Hand:
    """One worker: what it holds, what it knows, and whether it sleeps."""

    worker: Worker
    started: int | None = None
    lanes: set[int] = field(default_factory=set)
    held: dict[Place, Taken] = field(default_factory=dict)
    stale: list[Taken] = field(default_factory=list)
    """Leases it may not use any more, and uses all the same."""
    cursors: dict[str, int] | None = None
    fence: str | None = None
    last: tuple[dict[str, Any], Answer] | None = None
    asleep: bool = False
    timer: float | None = None
    pending: "Pending | None" = None

    def wake(self) -> None:
        """It will look again."""
        self.asleep, self.timer, self.fence = False, None, None


@dataclass
class Pending:
    """An exchange whose transaction is still open."""

    apply: Callable[[State], None]
    rows: set[Place]
    emits: list[tuple[Draft, Taken]]
    begun: int
    """The step at which it has done its work."""


@dataclass
class Writer:
    """One program that writes in transactions of its own."""

    connection: Any
    isolation: str | None = None
    begun: int = 0
    messages: list[Message] = field(default_factory=list)
    dedup: dict[str, tuple[int, int]] = field(default_factory=dict)
    locks: bool = False
    locked: set[int] = field(default_factory=set)
