"""The rate of the broadcasts of texts: shared by the workers of a project, and kept in every second."""

from runtime.worker.execution.text_rate import SharedRate


def test_all_workers_together_keep_to_the_rate_in_any_second() -> None:
    now = 0.0
    rates = [SharedRate(50, lambda: now) for _ in range(5)]
    for rate in rates:
        rate.share_among(5)
    taken: list[tuple[float, int]] = []
    for tick in range(1, 61):
        now = tick * 0.08
        # Each has ten texts to send at each tick, after a quiet time too.
        taken += [(now, rate.take(10)) for rate in rates if not 20 < tick < 40]
    for end, _ in taken:
        assert sum(amount for at, amount in taken if end - 1 < at <= end) <= 60
    busy = sum(amount for at, amount in taken if at <= 1.6)
    assert 65 <= busy <= 85
