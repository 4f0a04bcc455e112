"""What the clients of one history did and saw, in one order, written by the clients and never read from the kernel.

All clients run in one process, so one counter orders what they begin and what they have seen end. A run as it is
noted here lies within the lease it had: it begins when the answer that brought it is there, and ends before its report
is sent.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
    version: str = ""
    steps: dict[str, Any] = field(default_factory=dict)
    """Those that came with it, and those that it has kept, with their values."""
    undos: list[str] = field(default_factory=list)
    """The steps that came with it and have undos, as they finished."""
    waits: list[list[Any]] = field(default_factory=list)
    """What it is suspended over."""

    @property
    def is_undoing(self) -> bool:
        """Whether it is one of those that run the undos, after the delivery has died."""
        return "undo" in self.steps


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
        kept: by delivery, the steps that a worker was told are kept, with their values.
        undoable: deliveries of which a step is kept that has an undo.
        begun: by delivery of a pinned handler, the version that has kept its first step or wait.
        restarted: deliveries that were asked to begin anew by a replay, which forgets their steps.
        problems: what a client saw that must not be.
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
    kept: dict[Place, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    undoable: set[Place] = field(default_factory=set)
    begun: dict[Place, str] = field(default_factory=dict)
    restarted: set[Place] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    notes: dict[Place, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What happened to each delivery, to be read where something went wrong."""

    def tick(self) -> int:
        """The next moment."""
        self.now += 1
        return self.now

    def began(
        self, place: Place, key: str, lease: str, version: str, steps: dict[str, Any], undos: Sequence[str]
    ) -> Run:
        """A client was handed a delivery, with its steps: all that anybody was told are kept."""
        run = Run(place, key, lease, self.tick(), version=version, steps=steps, undos=list(undos))
        # A redrive and a replay leave it to any version.
        if self.begun.get(place, version) != version and not self.revivals[place]:
            self.problems.append(f"K17: {place} went on with version {version}: {self.notes[place]}")
        self.runs.append(run)
        self.note(place, "taken")
        for name, value in self.kept[place].items():
            if steps.get(name) != value and place not in self.restarted:
                self.problems.append(f"G12: {place} has lost its step {name}: {self.notes[place]}")
        return run

    def begin(self, run: Run, pinned: str) -> None:
        """A client was told that the first step or wait of a delivery is kept: the rest is that version's."""
        if run.place[1] == pinned:
            self.begun.setdefault(run.place, run.version)

    def keep(self, place: Place, name: str, value: int, *, is_undone: bool) -> None:
        """A client was told that a step is kept; one that is undone is forgotten by a redrive."""
        self.note(place, f"step {name}")
        self.counts["steps"] += 1
        if is_undone:
            self.undoable.add(place)
        else:
            self.kept[place][name] = value

    def buried(self, place: Place, error: str) -> None:
        """A client saw a dead letter: one that had finished steps with undos says what became of them."""
        if place in self.undoable and not self.revivals[place] and "ndone: " not in error:
            self.problems.append(f"K18: {place} died and was not undone: {self.notes[place]}")

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
