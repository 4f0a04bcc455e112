"""What the clients of one history did and saw, in one order, written by the clients and never read from the kernel.

All clients run in one process, so one counter orders what they begin and what they have seen end. A run as it is
noted here lies within the lease it had: it begins when the answer that brought it is there, and ends before its report
is sent.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

Place = tuple[int, str]
"""(message, subscription)"""


@dataclass(frozen=True, slots=True)
class Sent:
    """One committed message, and between which two moments it was written."""

    id: int
    key: str
    began: int
    committed: int


@dataclass(slots=True)
class Run:
    """One attempt; `ended` is None while it is under way."""

    place: Place
    key: str
    lease: str
    began: int
    ended: int | None = None
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class Prune:
    """Ids that a prune has looked at, and between which two moments: their deliveries may have expired then."""

    ids: range
    began: int
    committed: int


@dataclass
class History:
    """The record of one history.

    Attributes:
        uncertain: ids whose commit was never answered.
        ends: how often a delivery ended, as far as its clients know: done, discarded, cancelled.
        revivals: by delivery, when it was asked to come back by a replay or a redrive.
        replays: how many new deliveries of it a replay has made.
        fuzzy: deliveries of which it is not known how often they had to end: more than one was made of them, or an
            operator cancelled one that ran.
        releases: by delivery, when its dead letter was asked to be redriven or discarded.
    """

    now: int = 0
    messages: dict[int, Sent] = field(default_factory=dict)
    uncertain: set[int] = field(default_factory=set)
    prunes: list[Prune] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    ends: Counter[Place] = field(default_factory=Counter)
    revivals: dict[Place, list[int]] = field(default_factory=lambda: defaultdict(list))
    releases: dict[Place, list[int]] = field(default_factory=lambda: defaultdict(list))
    replays: Counter[Place] = field(default_factory=Counter)
    fuzzy: set[Place] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    notes: dict[Place, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What happened to each delivery, to be read where something went wrong."""

    def tick(self) -> int:
        """The next moment."""
        self.now += 1
        return self.now

    def began(self, place: Place, key: str, lease: str) -> Run:
        """A client was handed a delivery."""
        run = Run(place, key, lease, self.tick())
        self.runs.append(run)
        self.note(place, "taken")
        return run

    def note(self, place: Place, what: str) -> None:
        """Keep what happened, with the moment."""
        self.notes[place].append(f"{self.now} {what}")

    def end(self, place: Place, how: str) -> None:
        """A client was told that this delivery has ended."""
        self.ends[place] += 1
        self.note(place, how)

    def committed(self, ids: dict[int, str], began: int) -> None:
        """These ids are there for everybody, each under its key."""
        at = self.tick()
        for id_, key in ids.items():
            self.messages[id_] = Sent(id_, key, began, at)
