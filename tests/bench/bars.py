"""What has to be reached? Ratios of medians in one run, and a few limits of our own."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.contestants import OURS
from tests.bench.sample import Results

BEHIND_1M = "growth/behind 1,000,000 finished"
BEHIND_10M = "huge/behind 10,000,000 finished"

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


def _to_best(figure: str) -> Ratio:
    """Ours against the best of the peers."""

    def ratio(results: Results) -> float | None:
        peers = [results.value(figure, name) for name in results.contestants(figure) if name != OURS]
        return _divided(results.value(figure, OURS), max(filter(None, peers), default=None))

    return ratio


def _between(figure: str, base: str) -> Ratio:
    """One figure of ours against another."""
    return lambda results: _divided(results.value(figure, OURS), results.value(base, OURS))


def _of(figure: str) -> Ratio:
    """A figure of ours as it is."""
    return lambda results: results.value(figure, OURS)


def _gate(writers: int, kind: str, base: str) -> Ratio:
    """Commits of so many writers against those into another table."""
    return _between(f"{writers} writers/{kind}", f"{writers} writers/{base}")


def _ratio_to_best(figure: str, base: str) -> Ratio:
    """Our ratio of two figures against the best of the peers' ratios."""

    def ratio(results: Results) -> float | None:
        reached = {
            name: _divided(results.value(figure, name), results.value(base, name))
            for name in results.contestants(figure)
        }
        ours = reached.pop(OURS, None)
        return _divided(ours, max(filter(None, reached.values()), default=None))

    return ratio


def _divided(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by


BARS = (
    Bar("drain, 1 worker: of pgqueuer", "drain", _to("drain/1 worker", "pgqueuer"), 1.5),
    Bar("drain, 1 worker: of pgmq", "drain", _to("drain/1 worker", "pgmq"), 1.15),
    Bar("drain, 1 worker: of graphile-worker", "drain", _to("drain/1 worker", "graphile_worker"), 1.0),
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
    Bar("drain over REST, 1 worker", "rest", _of("drain/REST, 1 worker"), 5_000, unit="/s"),
    *(
        Bar(
            f"drain, {trip} ms away: of the best peer",
            "roads",
            _to_best(f"roads/drain, {trip} ms away"),
            1.0,
        )
        for trip in (40, 120)
    ),
    *(
        Bar(
            f"drain over REST, {trip} ms away: of nearby",
            "roads_rest",
            _between(f"roads/REST drain, {trip} ms away", "roads/REST drain, 0 ms away"),
            least,
        )
        for trip, least in ((40, 0.5), (120, 0.25))
    ),
    Bar("fan-out, 1 to 100: of 1 to 1", "fan_out", _between("fan-out/1 to 100", "fan-out/1 to 1"), 0.8),
    Bar(
        "insert beside 1,000 subscriptions: of beside one",
        "wildcards",
        _between("insert of 1/1,000 subscriptions", "insert of 1/1 subscription"),
        1.5,
        True,
    ),
    Bar(
        "batch of 100 beside 1,000 subscriptions: of beside one",
        "wildcards",
        _between("insert of 100/1,000 subscriptions", "insert of 100/1 subscription"),
        1.5,
        True,
    ),
    Bar("behind 1 M finished: of empty", "growth", _between(BEHIND_1M, "growth/empty"), 0.95),
    Bar("behind 10 M finished: of empty", "huge", _between(BEHIND_10M, "huge/empty"), 0.9),
    Bar(
        "beside a transaction open for 60 s: of without", "held", _between("held/held open", "held/free"), 0.5
    ),
    Bar("the same ratio: of the best peer's", "held", _ratio_to_best("held/held open", "held/free"), 1),
    Bar("8 writers, gate shut: of a bare table", "writers", _gate(8, "workers busy", "bare table"), 0.5),
    Bar("32 writers, gate shut: of a bare table", "writers", _gate(32, "workers busy", "bare table"), 0.5),
    Bar(
        "8 writers, workers asleep: of ungated NOTIFY",
        "writers",
        _gate(8, "workers asleep", "ungated NOTIFY"),
        1,
    ),
    Bar(
        "32 writers, workers asleep: of ungated NOTIFY",
        "writers",
        _gate(32, "workers asleep", "ungated NOTIFY"),
        1,
    ),
    Bar("handlers of three steps: of DBOS", "steps", _to("steps/handlers of three", "dbos"), 5),
    Bar("handlers of three steps: of Absurd", "steps", _to("steps/handlers of three", "absurd"), 10),
    Bar(
        "an adapter, for each request of a model",
        "adapters",
        _of("adapters/request, of Pydantic AI's adapter itself"),
        3,
        True,
        "ms",
    ),
    Bar("a step, p50: of a single send", "trips", _between("trips/step, p50", "trips/send, p50"), 1.5, True),
    Bar(
        "drain beside 100,000 suspended: of beside none",
        "suspended",
        _between("suspended/drain beside 100,000", "suspended/drain beside 0"),
        0.95,
    ),
    Bar(
        "memory beside 100,000 suspended: of beside none",
        "suspended",
        _between("suspended/memory beside 100,000", "suspended/memory beside 0"),
        1.02,
        True,
    ),
    *(
        Bar(
            f"{what}, 10,000 waits on other keys: of none",
            "awaited",
            _between(f"awaited/{what} beside 10,000", f"awaited/{what} beside 0"),
            0.95,
        )
        for what in ("send of 1", "send of 100", "8 writers")
    ),
    Bar(
        "from the message to the line after wait_for, p50: of a fresh delivery",
        "resumed",
        _between("resumed/after a wait, p50", "resumed/fresh delivery, p50"),
        2,
        True,
    ),
    Bar("idle: queries", "idle", _of("idle/queries"), 1, True, "per 10 s"),
    Bar("idle: CPU", "idle", _of("idle/CPU"), 0.5, True, "%"),
    Bar("idle: memory", "idle", _of("idle/memory"), 60, True, "MB"),
    Bar(
        "memory after 200,000 messages: of after 50,000",
        "memory",
        _between("memory/after 200,000", "memory/after 50,000"),
        1.05,
        True,
    ),
    Bar("import runtime", "start_up", _of("start-up/import runtime"), 150, True, "ms"),
    Bar("runtime --help", "start_up", _of("start-up/runtime --help"), 300, True, "ms"),
)
