"""How much an exchange carries after one came to nothing, and how soon it carries as much as before."""

from typing import Any

import pytest

from runtime.store import Look
from runtime.worker.exchange_bounds import MAX_REPORT_BYTES, MAX_REPORTS, ExchangeBounds
from tests.simulated_kernel import Simulation


@pytest.mark.parametrize("by", [2, 8, 500])
def test_l2_reports_are_halved_down_to_one_and_come_back(by: int) -> None:
    narrowing = ExchangeBounds(15)
    count = MAX_REPORTS
    for _ in range(20):
        narrowing.shrink_reports(count, 1_000_000, by)
        assert narrowing.reports <= max(1, count // by)
        count = narrowing.reports
    assert (narrowing.reports, narrowing.report_bytes, narrowing.is_narrow) == (1, 1, True)
    for _ in range(40):
        narrowing.grow(reported=True, wanted=False, seconds=0.1)
    assert (narrowing.reports, narrowing.report_bytes) == (MAX_REPORTS, MAX_REPORT_BYTES)
    assert not narrowing.is_narrow


def test_l11_what_is_taken_grows_only_after_exchanges_that_were_quick() -> None:
    narrowing = ExchangeBounds(15)
    narrowing.shrink_taking(200, 8)
    assert narrowing.answer_bytes == 1_000_000
    assert sum(narrowing.share({1: 100, 2: 100}).values()) <= 25
    narrowing.grow(reported=False, wanted=True, seconds=5)
    assert narrowing.answer_bytes == 1_000_000
    narrowing.grow(reported=False, wanted=True, seconds=1)
    assert narrowing.answer_bytes == 2_000_000


def test_l11_where_one_alone_is_taken_every_subscription_has_its_turn() -> None:
    narrowing = ExchangeBounds(15)
    narrowing.shrink_taking(1, 8)
    turns = [narrowing.share({1: 5, 2: 5, 3: 5}) for _ in range(6)]
    assert all(sum(turn.values()) == 1 for turn in turns)
    assert {number for turn in turns for number in turn} == {1, 2, 3}


def looks(simulation: Simulation, count: int) -> list[Look]:
    found: list[Look] = []
    while len(found) < count:
        step: Any = simulation.step()
        if isinstance(step, Look):
            found.append(step)
        else:
            simulation.kernel.now += step.seconds
    return found


def test_l1_reports_and_taking_travel_apart_while_exchanges_carry_less_and_neither_waits_for_ever() -> None:
    simulation = Simulation({1: 50})
    for _ in range(50):
        simulation.write(1)
    simulation.settle_down()
    for _ in range(40):
        simulation.finish()
    simulation.write(1)
    look = simulation.plan.decide(simulation.now)
    assert isinstance(look, Look)
    simulation.plan.put_back(look, simulation.now, by=500)
    made = looks(simulation, 6)
    assert all(not (each.want and each.reports) for each in made)
    assert any(each.want for each in made)
    assert any(each.reports for each in made)
    simulation.settle_down()
    assert simulation.kernel.finished.total() == 40


def test_l1_a_report_set_aside_is_tried_by_itself_ever_more_rarely_and_stays_leased() -> None:
    simulation = Simulation({1: 2})
    simulation.write(1)
    simulation.settle_down()
    simulation.finish()
    look = simulation.plan.decide(simulation.now)
    assert isinstance(look, Look)
    (report,) = look.reports
    pauses = []
    for _ in range(10):
        aside = simulation.plan.outbox.delay(report, simulation.now)
        pauses.append(aside.due_at - simulation.now)
        simulation.kernel.now = aside.due_at
        again = simulation.plan.decide(simulation.now)
        assert isinstance(again, Look)
        assert (again.reports, again.want) == ([report], {})
    assert pauses == sorted(pauses)
    assert pauses[-1] > 10
    assert simulation.plan.held
    assert not simulation.plan.is_idle
