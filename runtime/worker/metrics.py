"""The metrics of a worker for Prometheus: attempts as they end, and the worker's state at each scrape."""

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.agent.usage import usage_by_model
from runtime.worker.dispatcher import Dispatcher
from runtime.worker.execution.attempt import Attempt

_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900)
_WAKEUPS: Final = "wake-ups by "
_COUNTS: Final = {
    "exchanges": ("runtime_exchanges", "Round trips to the store."),
    "taken": ("runtime_deliveries_taken", "Deliveries taken from the store."),
    "done": ("runtime_deliveries_done", "Deliveries finished, as the store confirmed."),
    "refused": ("runtime_results_refused", "Late results refused by the store."),
    "leases lost": ("runtime_leases_lost", "Leases that went to another worker."),
    "leases lapsed": ("runtime_leases_lapsed", "Leases that could not be renewed in time."),
}
_STATES: Final = ("waiting", "running", "scheduled", "suspended", "undoing", "blocked")


class Metrics:
    """The figures of one worker in a registry of its own: keys and handlers are labels, values never."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._attempts = Counter(
            "runtime_attempts", "Attempts that ended.", ["handler", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "runtime_attempt_seconds", "How long attempts took.", ["handler"],
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._emitted = Counter(
            "runtime_emitted_messages", "Messages that handlers emitted.", ["handler"], registry=self.registry
        )
        self._tokens = Counter(
            "runtime_usage_tokens", "Tokens of language models, as handlers tell them.",
            ["agent", "handler", "model", "direction"], registry=self.registry,
        )  # fmt: skip
        self._cost = Counter(
            "runtime_usage_cost_usd", "What language models cost, as handlers tell it, in US dollars.",
            ["agent", "handler", "model"], registry=self.registry,
        )  # fmt: skip
        ProcessCollector(registry=self.registry)

    def observe(self, attempt: Attempt) -> None:
        """Count an attempt."""
        handler, report = attempt.handler.name, attempt.report
        self._attempts.labels(handler, report.outcome or "done").inc()
        self._seconds.labels(handler).observe(report.seconds)
        if report.emits:
            self._emitted.labels(handler).inc(len(report.emits))
        for used in () if report.usage is None else usage_by_model(report.usage):
            labels = (attempt.handler.agent, handler, used.get("model", ""))
            for direction, figure in (("input", "tokens_in"), ("output", "tokens_out")):
                self._tokens.labels(*labels, direction).inc(used.get(figure, 0))
            self._cost.labels(*labels).inc(used.get("cost", 0))

    def watch(self, dispatcher: Dispatcher) -> "WorkerSnapshot":
        """Show the state of this dispatcher too, at each scrape."""
        standing = WorkerSnapshot(dispatcher)
        self.registry.register(standing)
        return standing


class WorkerSnapshot(Collector):
    """The state of a worker, read at each scrape.

    Attributes:
        stats: the last answer of `stream_stats`; empty before the first.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.stats: dict[str, Any] = {}

    def describe(self) -> list[Metric]:
        """Nothing is known before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        counts, plan = dict(self._dispatcher.counts), self._dispatcher.plan
        for name, (metric, text) in _COUNTS.items():
            yield CounterMetricFamily(metric, text, value=counts.get(name, 0))
        woken = CounterMetricFamily("runtime_wakeups", "Hints to look again, by way.", labels=["path"])
        for name, count in counts.items():
            if name.startswith(_WAKEUPS):
                woken.add_metric([name.removeprefix(_WAKEUPS)], count)
        yield woken
        yield GaugeMetricFamily(
            "runtime_deliveries_held", "Deliveries this worker holds a lease on.", value=len(plan.held)
        )
        yield GaugeMetricFamily(
            "runtime_live", "1 while a push path is live, 0 while the worker polls.", value=plan.reach.is_live
        )
        paths = GaugeMetricFamily("runtime_path_live", "1 while this push path delivers.", labels=["path"])
        for path in sorted(plan.reach.expected):
            paths.add_metric([path], path in plan.reach.lively)
        yield paths
        yield from _of_subscriptions(self.stats.get("subscriptions", []))


def _of_subscriptions(subscriptions: list[dict[str, Any]]) -> Iterator[Metric]:
    """The backlog of the whole stream: every worker shows the same, so take the maximum and not the sum."""
    backlog = GaugeMetricFamily(
        "runtime_backlog",
        "Deliveries that have not ended, by state: waiting, running, scheduled, suspended, undoing, blocked.",
        labels=["subscription", "state"],
    )
    lag = GaugeMetricFamily(
        "runtime_lag_seconds",
        "Age of the oldest message waiting, running or scheduled; sent with a delay, since that is over.",
        labels=["subscription"],
    )
    dead = GaugeMetricFamily("runtime_dead_letters", "Dead letters.", labels=["subscription"])
    workers = GaugeMetricFamily(
        "runtime_workers", "Workers seen in the last minute.", labels=["subscription"]
    )
    for each in subscriptions:
        name = each["name"]
        for state in _STATES:
            backlog.add_metric([name, state], each[state])
        lag.add_metric([name], each["lag_seconds"] or 0)
        dead.add_metric([name], each["dead"])
        workers.add_metric([name], each["workers"])
    yield from (backlog, lag, dead, workers)
