"""What has to be reached? Ratios of medians in one run, and a few limits of our own."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.contestants import OURS
from tests.bench.sample import Results

Ratio = Callable[[Results], float | None]


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        text: what is compared.
        measure: the measure that tells, as `--only` takes it.
        ratio: what was reached; None when it was not measured.
        limit: what has to be reached.
        is_ceiling: whether it must stay at or below the limit, else at or above.
        unit: of both.
    """

    text: str
    measure: str
    ratio: Ratio
    limit: float
    is_ceiling: bool = False
    unit: str = "×"

    def is_met(self, results: Results) -> bool | None:
        """Whether it is; None when it was not measured."""
        reached = self.ratio(results)
        if reached is None:
            return None
        return reached <= self.limit if self.is_ceiling else reached >= self.limit


def _to(figure: str, peer: str) -> Ratio:
    """Ours against one peer."""
    return lambda results: _divided(results.value(figure, OURS), results.value(figure, peer))


def _to_least(figure: str) -> Ratio:
    """Ours against the least of the peers."""

    def ratio(results: Results) -> float | None:
        peers = [results.value(figure, name) for name in results.contestants(figure) if name != OURS]
        return _divided(results.value(figure, OURS), min(filter(None, peers), default=None))

    return ratio


def _between(figure: str, base: str) -> Ratio:
    """One figure of ours against another."""
    return lambda results: _divided(results.value(figure, OURS), results.value(base, OURS))


def _of(figure: str) -> Ratio:
    """A figure of ours as it is."""
    return lambda results: results.value(figure, OURS)


def _divided(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by


BARS = (
    Bar("drain, 1 worker: of pgqueuer", "drain", _to("drain/1 worker", "pgqueuer"), 1.5),
    Bar("drain, 1 worker: of pgmq", "drain", _to("drain/1 worker", "pgmq"), 1.15),
    Bar("drain, 2 workers: of pgqueuer", "drain", _to("drain/2 workers", "pgqueuer"), 1.5),
    Bar("drain, 2 workers: of pgmq", "drain", _to("drain/2 workers", "pgmq"), 1.0),
    Bar("latency idle, p50: of the best peer", "latency", _to_least("latency/direct, idle, p50"), 1, True),
    Bar("latency idle, p99: of the best peer", "latency", _to_least("latency/direct, idle, p99"), 1, True),
    Bar(
        "latency idle, Realtime + REST, p50: of direct",
        "paths",
        _between("latency/Realtime + REST, idle, p50", "latency/direct, idle, p50"),
        5,
        True,
    ),
    Bar("send, single: of pgqueuer", "send", _to("send/single", "pgqueuer"), 0.8),
    Bar("send, batches of 100: of pgqueuer", "send", _to("send/batches of 100", "pgqueuer"), 1.0),
)
