"""How far is the database? The least of the last exchanges, forgotten after a while."""

from runtime.worker.exchange_bounds import MAX_REPORTS, ExchangeBounds
from runtime.worker.road import Road


def test_k20_a_road_is_as_long_as_the_quickest_exchange_of_the_last_half_minute() -> None:
    road = Road(now=100)
    assert road.seconds == 0
    for seconds, now in ((0.3, 101), (0.12, 102), (0.5, 103)):
        road.note(seconds, now)
    assert road.seconds == 0.12
    # Half a minute later it still counts, and a minute later it does not.
    road.note(0.4, 131)
    assert road.seconds == 0.12
    road.note(0.2, 162)
    assert road.seconds == 0.2
    road.note(0.6, 193)
    road.note(0.6, 224)
    assert road.seconds == 0.6


def test_k20_a_long_road_carries_more_reports_at_once_unless_an_exchange_has_failed() -> None:
    bounds = ExchangeBounds(15)
    bounds.lengthen(0.001)
    assert bounds.reports == MAX_REPORTS
    bounds.lengthen(0.04)
    assert bounds.reports == 2000
    bounds.lengthen(5)
    assert bounds.reports == 4096
    bounds.shrink_reports(4096, 1000, 8)
    bounds.lengthen(5)
    assert bounds.reports == 512
    assert bounds.is_narrow
    for _ in range(20):
        bounds.grow(reported=True, wanted=True, seconds=0.1)
    assert (bounds.reports, bounds.is_narrow) == (4096, False)
