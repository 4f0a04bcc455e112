"""What is measured? Each measure is one repetition for one contestant; a run calls them in turn, peers interleaved."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from tests.bench.contestants import OURS, QUEUES
from tests.bench.sample import Sample
from tests.bench.server import Server


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        messages: of a drain.
        steps: messages of a drain whose handlers have steps.
        paced: messages whose latency is taken.
        history: finished messages behind which everybody drains.
        huge: the same, for ours alone.
        backlog: messages of a long queue.
        suspended: deliveries that are suspended while others are handled.
        drain_seconds: after which a drain is cut off and counted by what it has done.
        held_seconds: how long a transaction has been open when the drain beside it begins.
        recovery_seconds: how long at most to wait until a drain is as fast as before.
        writing_seconds: how long concurrent writers write.
        idle_seconds: how long an idle worker is watched.
        quiet_seconds: how long at most to wait for an idle machine before a run.
        retries: how often a run is done again when the machine was not ours.
    """

    messages: int = 20_000
    steps: int = 4_000
    paced: int = 300
    history: int = 1_000_000
    huge: int = 10_000_000
    backlog: int = 1_000_000
    suspended: int = 100_000
    drain_seconds: float = 15
    held_seconds: float = 60
    recovery_seconds: float = 90
    writing_seconds: float = 4
    idle_seconds: float = 40
    quiet_seconds: float = 6
    retries: int = 1


QUICK = Scale(
    messages=1_000,
    steps=100,
    paced=25,
    history=2_000,
    huge=4_000,
    backlog=2_000,
    suspended=1_000,
    drain_seconds=10,
    held_seconds=1,
    recovery_seconds=3,
    writing_seconds=0.3,
    idle_seconds=2,
    quiet_seconds=0,
    retries=0,
)

Run = Callable[[Server, Scale, str], AsyncIterator[Sample]]


@dataclass(frozen=True)
class Measure:
    """One thing to measure.

    Attributes:
        name: what `--only` takes.
        run: one repetition for one contestant.
        peers: whom it is measured beside.
        is_long: whether a repetition takes minutes: then it is not done again for noise.
    """

    name: str
    run: Run
    peers: tuple[str, ...] = QUEUES
    is_long: bool = False

    def contestants(self, peers: Sequence[str]) -> list[str]:
        """Whom to measure, of those peers."""
        return [OURS, *(each for each in peers if each in self.peers)]
