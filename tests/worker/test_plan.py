"""Does the plan ask for the right thing at the right moment? No loop, no clock, no database: time in, decisions out."""

from itertools import pairwise
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.settings import Settings
from runtime.store import ExchangeAnswer, Look
from runtime.wakeups import Reachability
from runtime.worker.exchange_bounds import MAX_REPORT_BYTES, MAX_REPORTS
from runtime.worker.lanes import Lane, Lanes
from runtime.worker.plan import Plan, Wait
from runtime.worker.poison import PoisonMessages
from runtime.worker.sleep import Phase
from tests.simulated_kernel import Simulation

LEASE_SECONDS = 30.0


@pytest.fixture
def simulation() -> Simulation:
    return Simulation({1: 10, 2: 2})


def test_a_plan_begins_with_a_look_at_everything(simulation: Simulation) -> None:
    look = simulation.step()
    assert isinstance(look, Look)
    assert look.want == {1: 10, 2: 2}
    assert look.due


def test_a_backlog_is_taken_at_once_as_far_as_there_is_room(simulation: Simulation) -> None:
    for _ in range(30):
        simulation.write(1)
    simulation.settle_down()
    assert len(simulation.running) == 10
    for _ in range(3):
        while simulation.running:
            simulation.finish()
        simulation.settle_down()
    assert simulation.kernel.finished.total() == 30
    assert simulation.now < 1001.5


def test_room_is_free_slots_and_what_the_measured_pace_drains_in_a_moment() -> None:
    lane = Lane(limit=10)
    assert lane.room() == 10
    lane.held = 10
    assert lane.room() == 0
    lane.pace = 1000
    assert lane.room() == 50
    lane.pace = 10**9
    assert lane.room() == 400


def test_k20_far_from_the_database_room_is_what_the_pace_drains_in_some_round_trips() -> None:
    lane = Lane(limit=10, pace=1000, held=10)
    assert lane.room(0.001) == lane.room(0.01) == 50
    assert lane.room(0.1) == 400
    # What the next exchange cannot report is not to grow.
    assert lane.room(0.1, behind=300) == 100
    assert lane.room(0.1, behind=3000) == 0
    lane.pace = 10**9
    assert lane.room(0.1) == 8192


def test_k20_what_has_run_out_before_an_exchange_is_back_is_doubled() -> None:
    lane = Lane(limit=10)
    lane.note_taken(10, 10)
    # Nothing has run yet: how quick the handlers are is not known.
    assert lane.room(0.1) == 0
    rooms = []
    for _ in range(4):
        while lane.held:
            lane.note_finished()
        lane.note_taken(10, 10) if not rooms else lane.note_taken(rooms[-1], rooms[-1])
        rooms.append(lane.room(0.1))
    assert rooms == [30, 70, 150, 310]
    lane.note_taken(310, 310)
    assert lane.surge == 0


@pytest.mark.parametrize("seconds", [0.04, 0.12, 1.0])
def test_k20_a_far_backlog_is_drained_in_few_round_trips(seconds: float) -> None:
    simulation = Simulation({1: 100})
    simulation.exchange_seconds = seconds

    def run_all() -> None:
        while simulation.running:
            simulation.finish()

    simulation.meanwhile = run_all
    for _ in range(20_000):
        simulation.write(1)
    began = simulation.now
    simulation.advance(1000 * seconds, until=lambda: simulation.kernel.finished.total() == 20_000)
    assert simulation.kernel.finished.total() == 20_000
    # A hundred at a time would take two hundred, and twice as many where an exchange only reports.
    assert simulation.count_looks(began) < 20


def test_k20_no_more_is_taken_ahead_than_runs_within_a_third_of_a_lease() -> None:
    lanes = Lanes({1: Lane(limit=10, pace=100)}, now=0, lease_seconds=30)
    lanes.road.note(1.0, now=1)
    assert lanes.rooms(0, renews_async=True) == {1: 410}
    lanes.road.note(60.0, now=32)
    lanes.road.note(60.0, now=63)
    lanes.road.note(60.0, now=94)
    assert lanes.rooms(0, renews_async=True) == {1: 1010}


def test_k20_slow_handlers_are_not_taken_ahead_for_however_long_the_road() -> None:
    simulation = Simulation({1: 100})
    simulation.exchange_seconds = 0.5
    most = 0

    def run_one() -> None:
        nonlocal most
        most = max(most, len(simulation.running))
        if simulation.running:
            simulation.finish()

    simulation.meanwhile = run_one
    for _ in range(1000):
        simulation.write(1)
    simulation.advance(60)
    assert most < 120


def test_what_all_workers_share_is_not_taken_ahead() -> None:
    lane = Lane(limit=10, pace=1000, takes_ahead=False)
    lane.held = 10
    assert lane.room() == 0


@pytest.mark.parametrize("is_live", [True, False])
def test_k16_a_worker_with_limited_work_looks_in_its_time_and_neither_sleeps_on_nor_hurries(
    is_live: bool,
) -> None:
    simulation = Simulation({1: 10, 2: 2}, poll_slow_seconds=60, sweep_seconds=600)
    simulation.kernel.seconds_between[1] = 1.0
    if is_live:
        simulation.fall_asleep()
    for _ in range(20):
        simulation.write(1)
    began = simulation.now

    def is_done() -> bool:
        while simulation.running:
            simulation.finish()
        return simulation.kernel.finished.total() == 20

    simulation.advance(60, until=is_done)
    assert simulation.kernel.finished.total() == 20
    assert 19 <= simulation.now - began < 20.5
    # Each is taken, reported, and fallen asleep after.
    assert simulation.count_looks(began) < 20 * 12


def test_a_lane_without_slots_has_no_room_however_fast_it_was() -> None:
    assert Lane(limit=0, pace=10_000).room() == 0


def test_a_full_lane_keeps_no_other_from_taking(simulation: Simulation) -> None:
    for _ in range(5):
        simulation.write(2)
    simulation.settle_down()
    simulation.write(1)
    simulation.plan.wake()
    look = simulation.step()
    assert isinstance(look, Look)
    assert look.want == {1: 10}
    assert [delivery.subscription for delivery in simulation.running.values()] == [2, 2, 1]


def test_a_worker_that_is_full_asks_at_once_what_it_is_to_end_and_not_in_a_tight_loop(
    simulation: Simulation,
) -> None:
    simulation.plan.live("broadcast", simulation.now)
    for _ in range(2):
        simulation.write(2)
    for _ in range(10):
        simulation.write(1)
    simulation.settle_down()
    assert len(simulation.running) == 12
    began = simulation.now
    for _ in range(100):
        simulation.plan.recall()
        simulation.advance(0.001)
    looks = simulation.count_looks(began)
    assert 1 <= looks <= 4
    simulation.plan.recall()
    simulation.settle_down()
    assert simulation.count_looks(began) == looks + 1


# Reports


def test_every_report_is_sent_once_and_at_once(simulation: Simulation) -> None:
    simulation.write(1)
    simulation.settle_down()
    simulation.finish()
    look = simulation.step()
    assert isinstance(look, Look)
    assert len(look.done) == 1
    simulation.settle_down()
    assert set(simulation.reported.values()) == {1}


def test_reports_are_bounded_in_number_and_in_bytes() -> None:
    simulation = Simulation({1: 2000})
    for _ in range(MAX_REPORTS + 1):
        simulation.write(1)
    simulation.settle_down()
    while simulation.running:
        simulation.finish()
    look = simulation.step()
    assert isinstance(look, Look)
    assert len(look.done) == MAX_REPORTS
    simulation.settle_down()
    for _ in range(3):
        simulation.write(1)
    simulation.advance(1, until=lambda: len(simulation.running) == 3)
    while simulation.running:
        simulation.finish(emits=("x" * (MAX_REPORT_BYTES - 10),))
    began = simulation.now
    simulation.settle_down()
    assert [len(look.done) for at, look in simulation.looks if at >= began and look.done] == [1, 1, 1]


def test_failed_attempts_are_told_apart_from_finished_ones(simulation: Simulation) -> None:
    simulation.write(1, 2)
    simulation.settle_down()
    simulation.finish()
    simulation.finish(outcome="failed", delay=3.0)
    look = simulation.step()
    assert isinstance(look, Look)
    assert (len(look.done), len(look.failed)) == (1, 1)


def test_a_retry_is_looked_for_when_it_is_due(simulation: Simulation) -> None:
    simulation.write(1)
    simulation.settle_down()
    simulation.finish(outcome="failed", delay=3.0)
    simulation.fall_asleep()
    began = simulation.now
    simulation.advance(10, until=lambda: bool(simulation.running))
    assert 2.9 < simulation.now - began < 3.2


def test_a_delayed_message_is_looked_for_when_it_is_due(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.write(1, delay=4.0)
    began = simulation.now
    simulation.advance(10, until=lambda: bool(simulation.running))
    assert 4.0 <= simulation.now - began < 4.1


@pytest.mark.parametrize("takes", [True, False])
def test_g6_the_rest_of_a_crowd_that_came_due_at_once_is_looked_for_without_a_pause(
    simulation: Simulation, takes: bool
) -> None:
    simulation.write(1)
    simulation.settle_down()
    now = simulation.now
    look = Look(want={1: 2}, due=True)
    taken = tuple(simulation.running.values()) if takes else ()
    simulation.plan.absorb(look, ExchangeAnswer(taken=taken, next_due=0.0), sent_at=now, now=now)
    step = simulation.plan.decide(now)
    # What others hold up is not asked for in a tight loop.
    assert isinstance(step, Look) == takes
    assert isinstance(step, Wait) or step.due


# Leases


def test_g2_leases_are_renewed_before_two_thirds_of_them_are_over(simulation: Simulation) -> None:
    simulation.write(1)
    simulation.settle_down()
    began = simulation.now
    for _ in range(200):
        simulation.advance(1.0)
        assert simulation.now - min(simulation.renewed_at.values()) < LEASE_SECONDS * 2 / 3
    # Half a look a second for polling, one in ten seconds for the leases, and the sweeps.
    assert simulation.count_looks(began) < 150
    simulation.finish()
    simulation.settle_down()
    assert simulation.kernel.finished.total() == 1


def test_what_is_being_reported_is_not_renewed(simulation: Simulation) -> None:
    simulation.write(1)
    simulation.write(1)
    simulation.settle_down()
    simulation.kernel.now += LEASE_SECONDS / 3
    ended = simulation.finish()
    look = simulation.step()
    assert isinstance(look, Look)
    assert look.done[0].delivery is ended
    assert [delivery.place for delivery in look.renew] == [each.place for each in simulation.running.values()]


def test_a_blocked_loop_loses_its_leases_and_threads_keep_theirs() -> None:
    simulation = Simulation({1: 1, 2: 1})
    simulation.plan.lanes[2].in_threads = True
    simulation.write(1, 2)
    simulation.settle_down()
    simulation.plan.renews_async = False
    simulation.kernel.now += LEASE_SECONDS / 3
    look = simulation.step()
    assert isinstance(look, Look)
    assert [delivery.subscription for delivery in look.renew] == [2]
    simulation.finish()
    simulation.settle_down()
    simulation.write(1, 2)
    simulation.advance(3)
    assert [delivery.place for delivery in simulation.running.values()] == [(1, 2)]


def test_g3_a_delivery_that_lapsed_here_and_was_taken_again_is_counted_right(simulation: Simulation) -> None:
    simulation.write(2)
    simulation.settle_down()
    simulation.kernel.rows[1, 2].visible_at = simulation.now
    simulation.plan.sweep(simulation.now)
    simulation.advance(1, until=lambda: len(simulation.running) == 2)
    first, second = simulation.running
    assert simulation.plan.lanes[2].room() == 0
    simulation.finish(first)
    simulation.settle_down()
    assert simulation.kernel.finished.total() == 0
    assert [delivery.lease for delivery in simulation.plan.held.values()] == [second.rsplit("/")[-1]]
    simulation.finish(second)
    simulation.settle_down()
    assert simulation.kernel.finished.total() == 1
    assert simulation.plan.lanes[2].held == 0


def test_a_lost_lease_is_not_renewed_any_more(simulation: Simulation) -> None:
    simulation.write(1)
    simulation.settle_down()
    simulation.plan.leases.give_up((1, 1))
    simulation.kernel.now += LEASE_SECONDS / 3
    look = simulation.step()
    assert isinstance(look, Look)
    assert look.renew == []


# Sleep and wake-ups


def test_k16_a_worker_sleeps_after_marking_itself_and_looking_once_more(simulation: Simulation) -> None:
    simulation.settle_down()
    simulation.plan.live("broadcast", simulation.now)
    simulation.settle_down()
    looks = [look for _, look in simulation.looks]
    assert [look.sleep for look in looks[-2:]] == [True, True]
    assert looks[-1].cursors is None
    assert looks[-1].due
    assert simulation.plan.phase is Phase.ASLEEP
    assert simulation.kernel.asleep


def test_k16_it_keeps_looking_while_somebody_may_write_who_has_not_seen_the_mark(
    simulation: Simulation,
) -> None:
    simulation.settle_down()
    writer = simulation.kernel.insert(1)
    simulation.plan.live("broadcast", simulation.now)
    began = simulation.now
    simulation.advance(2.0)
    assert simulation.plan.phase is Phase.DROWSY
    # 5 ms, doubling to 50 ms.
    assert 30 < simulation.count_looks(began) < 60
    gaps = [b[0] - a[0] for a, b in zip(simulation.looks, simulation.looks[1:], strict=False)]
    assert max(gaps[-10:]) == pytest.approx(0.05, abs=0.005)
    simulation.commit(writer)
    simulation.advance(0.1)
    assert len(simulation.running) == 1


def test_k16_after_some_seconds_of_a_foreign_transaction_it_looks_at_the_polling_pace(
    simulation: Simulation,
) -> None:
    simulation.settle_down()
    simulation.kernel.insert(1)
    simulation.plan.live("broadcast", simulation.now)
    simulation.advance(10)
    began = simulation.now
    simulation.advance(60)
    assert simulation.count_looks(began) <= 60 / simulation.settings.poll_slow_seconds + 8


def test_k5_nothing_sleeps_and_nothing_spins_while_a_subscription_is_not_settled(
    simulation: Simulation,
) -> None:
    simulation.kernel.unsettled = {1}
    simulation.plan.unsettled = frozenset({1})
    writer = simulation.kernel.insert(2)
    simulation.plan.live("broadcast", simulation.now)
    simulation.advance(10)
    began = simulation.now
    simulation.advance(60)
    assert simulation.plan.phase is not Phase.ASLEEP
    assert simulation.count_looks(began) <= 60 * 5
    simulation.commit(writer)
    simulation.advance(1)
    assert simulation.plan.unsettled == frozenset()
    assert len(simulation.running) == 1


def test_a_message_written_while_a_handler_runs_is_found_soon_though_nobody_announces_it(
    simulation: Simulation,
) -> None:
    simulation.fall_asleep()
    simulation.advance(simulation.settings.sweep_seconds - 1)
    simulation.write(1)
    # Taken by the sweep, which looks at everything: no reason to think that this was all.
    simulation.plan.sweep(simulation.now)
    simulation.step()
    assert len(simulation.running) == 1
    simulation.kernel.asleep = False
    simulation.kernel.insert(1)
    simulation.commit(simulation.kernel.writers[0])
    began = simulation.now
    simulation.advance(1, until=lambda: len(simulation.running) == 2)
    assert simulation.now - began < 0.02


def test_an_idle_sleeper_costs_at_most_a_query_in_ten_seconds(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.advance(30)
    began = simulation.now
    for _ in range(10):
        simulation.plan.prove("nonce")
        simulation.advance(60)
    assert simulation.count_looks(began) <= 60


def test_a_sleeper_stays_asleep_though_others_write_all_the_time(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.kernel.insert(7)
    began = simulation.now
    simulation.advance(100)
    assert simulation.plan.phase is Phase.ASLEEP
    assert simulation.count_looks(began) <= 10


def leave_it_at_a_call(simulation: Simulation, *, hears: bool) -> None:
    """Two write. One calls, and somebody takes what it wrote; one leaves it at that call, and is slow to commit."""
    caller = simulation.kernel.insert(1)
    if hears:
        simulation.commit(caller)
    else:
        simulation.kernel.commit(caller)
        simulation.plan.prove("nonce")
    simulation.kernel.rows.clear()
    slow = simulation.kernel.insert(1)
    assert caller.announces
    assert not slow.announces
    simulation.advance(0.5)
    simulation.commit(slow)


def test_k16_who_leaves_it_at_a_call_that_was_in_vain_is_waited_for(simulation: Simulation) -> None:
    simulation.fall_asleep()
    leave_it_at_a_call(simulation, hears=True)
    simulation.advance(0.1)
    assert len(simulation.running) == 1


def test_k16_who_leaves_it_at_a_call_that_is_not_heard_yet_is_waited_for(simulation: Simulation) -> None:
    simulation.fall_asleep()
    leave_it_at_a_call(simulation, hears=False)
    simulation.advance(0.1)
    assert len(simulation.running) == 1


def test_a_flood_of_hints_costs_a_few_looks_a_second(simulation: Simulation) -> None:
    simulation.fall_asleep()
    began = simulation.now
    while simulation.now < began + 10:
        simulation.plan.wake()
        step = simulation.step()
        if isinstance(step, Wait):
            simulation.kernel.now += min(step.seconds, 0.001)
    assert simulation.count_looks(began) <= 10 * 45


def test_a_hint_after_a_quiet_time_is_followed_at_once(simulation: Simulation) -> None:
    simulation.fall_asleep()
    for _ in range(20):
        simulation.advance(1)
        simulation.plan.wake()
        assert isinstance(simulation.step(), Look)


def test_a_hint_of_what_is_due_is_followed_by_one_look_at_it_and_a_common_one_by_none(
    simulation: Simulation,
) -> None:
    simulation.fall_asleep()
    for tells_due in (True, False):
        simulation.advance(1)
        simulation.plan.wake(tells_due=tells_due)
        look = simulation.step()
        assert isinstance(look, Look)
        assert look.due is tells_due


def test_the_slower_of_two_paths_tells_nothing_new_of_a_message_taken_already(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.write(1)
    simulation.settle_down()
    assert simulation.plan.wake(1) is False
    assert simulation.plan.wake(2) is True
    assert simulation.plan.wake() is True


def test_what_was_remembered_of_messages_is_bounded_and_forgotten_with_the_database() -> None:
    simulation = Simulation({1: 5000})
    for _ in range(3000):
        simulation.write(1)
    simulation.settle_down()
    assert simulation.plan.wake(1) is True
    assert simulation.plan.wake(3000) is False
    simulation.plan.begin_anew(simulation.now)
    assert simulation.plan.wake(3000) is True


def test_a_sweep_that_finds_unannounced_work_raises_a_doubt(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.kernel.commit(simulation.kernel.insert(1))
    simulation.advance(30, until=lambda: bool(simulation.running))
    assert simulation.plan.unannounced
    simulation.finish()
    simulation.fall_asleep()
    simulation.write(1)
    simulation.advance(30, until=lambda: bool(simulation.running))
    assert not simulation.plan.unannounced


def test_a_nonce_travels_with_one_exchange_at_once(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.plan.prove("abc")
    look = simulation.step()
    assert isinstance(look, Look)
    assert (look.nonce, look.beat) == ("abc", True)
    assert isinstance(simulation.step(), Wait)


def test_t3_of_two_nonces_that_are_asked_for_before_either_leaves_both_leave(simulation: Simulation) -> None:
    simulation.fall_asleep()
    for nonce in ("of the socket", "of notify", "of the socket"):
        simulation.plan.prove(nonce)
    looks = [simulation.step(), simulation.step()]
    assert [look.nonce for look in looks if isinstance(look, Look)] == ["of the socket", "of notify"]
    assert isinstance(simulation.step(), Wait)


def test_t6_while_a_path_that_kept_silent_is_doubted_the_next_rows_do_not_wait_for_a_sweep(
    simulation: Simulation,
) -> None:
    simulation.fall_asleep()
    simulation.kernel.commit(simulation.kernel.insert(1))
    simulation.advance(simulation.settings.sweep_seconds + 1, until=lambda: bool(simulation.running))
    assert simulation.plan.unannounced
    simulation.finish()
    for _ in range(3):
        simulation.kernel.commit(simulation.kernel.insert(1))
        written = simulation.now
        simulation.advance(60, until=lambda: bool(simulation.running))
        assert simulation.now - written <= simulation.settings.poll_slow_seconds
        simulation.finish()


# Polling


def test_g7_polling_begins_at_once_when_the_last_path_is_lost(simulation: Simulation) -> None:
    simulation.plan.reach.expected = frozenset({"broadcast", "postgres_changes"})
    simulation.plan.live("postgres_changes", simulation.now)
    simulation.fall_asleep()
    simulation.plan.live("broadcast", simulation.now)
    simulation.settle_down()
    assert simulation.plan.lost("broadcast", simulation.now) is False
    assert isinstance(simulation.step(), Wait)
    assert simulation.plan.lost("postgres_changes", simulation.now) is True
    assert isinstance(simulation.step(), Look)


def test_g7_polling_is_fast_after_activity_slower_when_idle_and_bounded(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.plan.lost("broadcast", simulation.now)
    first = simulation.settle_down().seconds
    assert first <= simulation.settings.poll_fast_seconds * 1.1
    simulation.advance(60)
    began = simulation.now
    simulation.advance(60)
    assert 60 / 2.0 - 1 <= simulation.count_looks(began) <= 60 / 1.8 + 5
    simulation.kernel.commit(simulation.kernel.insert(1))
    simulation.advance(2.5, until=lambda: bool(simulation.running))
    assert len(simulation.running) == 1
    assert simulation.settle_down().seconds <= simulation.settings.poll_fast_seconds * 1.1


def test_g7_when_a_path_is_live_again_one_sweep_catches_up_and_polling_stops(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.plan.lost("broadcast", simulation.now)
    simulation.advance(5)
    simulation.kernel.commit(simulation.kernel.insert(1))
    assert simulation.plan.live("broadcast", simulation.now) is True
    look = simulation.step()
    assert isinstance(look, Look)
    assert look.cursors is None
    assert len(simulation.running) == 1
    simulation.finish()
    simulation.fall_asleep()
    began = simulation.now
    simulation.advance(15)
    assert simulation.count_looks(began) <= 1


def test_polling_never_sleeps_in_the_eyes_of_the_database(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.plan.lost("broadcast", simulation.now)
    simulation.advance(5)
    assert not simulation.kernel.asleep
    assert simulation.plan.phase is Phase.AWAKE


# Poison messages


def make_poison(simulation: Simulation, subscription: int = 1) -> None:
    simulation.write(subscription)
    row = max(simulation.kernel.rows.items())[1]
    row.crashes, row.visible_at = 2, simulation.now
    simulation.plan.sweep(simulation.now)


def test_k8_a_poison_message_is_taken_alone_and_runs_with_nothing_beside_it(simulation: Simulation) -> None:
    simulation.fall_asleep()
    make_poison(simulation)
    simulation.advance(1, until=lambda: bool(simulation.running))
    assert simulation.looks[-1][1].alone
    assert simulation.looks[-1][1].want == {1: 1, 2: 1}
    simulation.write(1)
    simulation.plan.wake()
    simulation.advance(5)
    assert len(simulation.running) == 1
    simulation.finish()
    simulation.advance(1)
    assert len(simulation.running) == 1
    assert not simulation.looks[-1][1].alone


def test_k8_a_poison_message_waits_for_what_runs_and_holds_up_nobody_for_long(simulation: Simulation) -> None:
    simulation.fall_asleep()
    simulation.write(2)
    simulation.advance(1)
    make_poison(simulation)
    simulation.advance(1)
    # A long handler runs: others are still taken.
    simulation.write(1)
    simulation.plan.wake()
    simulation.advance(1)
    assert len(simulation.running) == 2
    # After a lease's time taking pauses, for a lease's time.
    simulation.advance(LEASE_SECONDS)
    simulation.write(1)
    simulation.plan.wake()
    simulation.advance(1)
    assert len(simulation.running) == 2
    simulation.advance(LEASE_SECONDS)
    assert len(simulation.running) == 3
    while simulation.running:
        simulation.finish()
    simulation.advance(1)
    assert len(simulation.running) == 1
    assert [each.crashes for each in simulation.running.values()] == [2]


def test_k8_beside_quarantine_a_worker_goes_on_and_leaves_poison_messages_alone() -> None:
    simulation = Simulation({1: 10, 2: 10}, poison_messages=PoisonMessages.NEVER, lease_seconds=LEASE_SECONDS)
    simulation.plan.live("broadcast", simulation.now)
    make_poison(simulation)
    simulation.advance(3 * LEASE_SECONDS)
    assert not simulation.running
    assert not any(look.alone for _, look in simulation.looks)
    simulation.write(1)
    simulation.plan.wake()
    simulation.advance(1)
    assert [each.crashes for each in simulation.running.values()] == [0]


def test_k8_a_quarantine_worker_takes_one_poison_message_at_a_time_and_nothing_else() -> None:
    simulation = Simulation(
        {1: 10, 2: 10}, paths=(), poison_messages=PoisonMessages.ONLY, lease_seconds=LEASE_SECONDS
    )
    simulation.write(1)
    make_poison(simulation, 1)
    make_poison(simulation, 2)
    simulation.advance(1)
    assert [each.crashes for each in simulation.running.values()] == [2]
    simulation.advance(LEASE_SECONDS)
    assert len(simulation.running) == 1
    simulation.finish()
    simulation.advance(1)
    assert [each.crashes for each in simulation.running.values()] == [2]
    simulation.finish()
    simulation.advance(LEASE_SECONDS)
    assert not simulation.running
    assert [row.crashes for row in simulation.kernel.rows.values()] == [0]


def test_k8_a_quarantine_worker_looks_when_a_lease_ends_and_rests_meanwhile() -> None:
    simulation = Simulation(
        {1: 10}, paths=(), poison_messages=PoisonMessages.ONLY, lease_seconds=LEASE_SECONDS
    )
    simulation.write(1)
    (row,) = simulation.kernel.rows.values()
    row.lease, row.visible_at, row.crashes = "of another", simulation.now + 7, 1
    began = simulation.now
    simulation.advance(10, until=lambda: bool(simulation.running))
    assert 7 <= simulation.now - began < 7.1
    assert simulation.count_looks(began) <= 4
    simulation.finish()
    simulation.advance(1)
    began = simulation.now
    assert simulation.plan.wake() is False
    simulation.advance(100)
    assert simulation.count_looks(began) <= 100 / simulation.settings.sweep_seconds + 1


@pytest.mark.parametrize("sweep_seconds", [1, 20, 60, 3600])
def test_l9_the_heartbeat_does_not_depend_on_the_pace_of_the_sweeps(sweep_seconds: float) -> None:
    simulation = Simulation({1: 10}, sweep_seconds=sweep_seconds)
    simulation.fall_asleep()
    began = simulation.now
    simulation.advance(300)
    beats = [at for at, look in simulation.looks if look.beat and at >= began]
    # The database takes a sleeper for gone after a minute.
    assert all(later - at <= 20.1 for at, later in pairwise([began, *beats, simulation.now]))
    # One that only shows that it lives looks neither at everything, nor does it wake up.
    swept = [look for at, look in simulation.looks if look.beat and look.due and at >= began]
    assert len(swept) <= 300 / sweep_seconds + 1
    assert simulation.plan.phase is Phase.ASLEEP


# Stopping, and answers that are not what was hoped for


def test_g9_stopping_takes_nothing_and_still_reports_and_renews(simulation: Simulation) -> None:
    simulation.write(1)
    simulation.write(1)
    simulation.settle_down()
    simulation.plan.stopping = True
    simulation.write(1)
    simulation.plan.wake()
    simulation.plan.lost("broadcast", simulation.now)
    simulation.finish()
    look = simulation.step()
    assert isinstance(look, Look)
    assert (len(look.done), look.want) == (1, {})
    began = simulation.now
    simulation.advance(LEASE_SECONDS)
    assert any(look.renew for at, look in simulation.looks if at >= began)
    assert not any(look.want for at, look in simulation.looks if at >= began)


def test_a_store_that_refuses_is_left_alone_for_a_while_but_for_reports(simulation: Simulation) -> None:
    simulation.write(1)
    simulation.settle_down()
    simulation.plan.put_off(simulation.now + 5)
    simulation.plan.wake()
    assert simulation.step() == Wait(5)
    simulation.finish()
    assert isinstance(simulation.step(), Look)
    simulation.kernel.now += 5
    look = simulation.step()
    assert isinstance(look, Look)
    assert look.want


def test_k2_after_an_answer_that_was_lost_and_repeated_everything_is_asked_again(
    simulation: Simulation,
) -> None:
    simulation.plan.unsettled = frozenset({1})
    look = simulation.plan.decide(simulation.now)
    assert isinstance(look, Look)
    assert look.settle
    simulation.plan.absorb(look, ExchangeAnswer(repeated=True), sent_at=simulation.now, now=simulation.now)
    assert simulation.plan.unsettled == {1}
    simulation.kernel.now += 0.06
    again = simulation.plan.decide(simulation.now)
    assert isinstance(again, Look)
    assert (again.due, again.settle, again.cursors) == (True, True, None)


# Anything, in any order


class AnyOrder(RuleBasedStateMachine):
    """Writers, handlers, paths and time in any order; what must hold, holds after every step."""

    @initialize(live=st.booleans(), limits=st.tuples(st.integers(1, 4), st.integers(1, 4)))
    def begin(self, live: bool, limits: tuple[int, int]) -> None:
        self.simulation = Simulation({1: limits[0], 2: limits[1]}, paths=("broadcast", "postgres_changes"))
        if live:
            self.simulation.plan.live("broadcast", self.simulation.now)
        self.taken: set[str] = set()

    @rule(subscriptions=st.sets(st.integers(1, 2), min_size=1), delay=st.none() | st.floats(0, 40))
    def write(self, subscriptions: set[int], delay: float | None) -> None:
        self.simulation.write(*sorted(subscriptions), delay=delay)

    @rule(subscription=st.integers(1, 2))
    def begin_to_write(self, subscription: int) -> None:
        self.simulation.kernel.insert(subscription)

    @precondition(lambda self: self.simulation.kernel.writers)
    @rule(data=st.data())
    def commit(self, data: Any) -> None:
        self.simulation.commit(data.draw(st.sampled_from(self.simulation.kernel.writers)))

    @rule(message=st.none() | st.integers(1, 20))
    def forge_a_hint(self, message: int | None) -> None:
        self.simulation.plan.wake(message)

    @rule(path=st.sampled_from(["broadcast", "postgres_changes"]))
    def live(self, path: Any) -> None:
        self.simulation.plan.live(path, self.simulation.now)

    @rule(path=st.sampled_from(["broadcast", "postgres_changes"]))
    def lose(self, path: Any) -> None:
        if self.simulation.plan.lost(path, self.simulation.now) and self.simulation.plan._want(
            self.simulation.now
        ):
            assert isinstance(self.simulation.step(), Look), "polling begins at once"

    @precondition(lambda self: self.simulation.running)
    @rule(
        data=st.data(),
        report=st.sampled_from(
            [{}, {"outcome": "failed", "delay": 2.0}, {"outcome": "released"}, {"outcome": "dead"}]
        ),
    )
    def finish(self, data: Any, report: dict[str, Any]) -> None:
        self.simulation.finish(data.draw(st.sampled_from(sorted(self.simulation.running))), **report)

    @precondition(lambda self: self.simulation.kernel.rows)
    @rule(data=st.data())
    def crash_elsewhere(self, data: Any) -> None:
        row = data.draw(st.sampled_from(list(self.simulation.kernel.rows.values())))
        if row.lease is None:
            row.lease, row.visible_at, row.crashes = "elsewhere", self.simulation.now + 1, row.crashes + 1
            if row.crashes == 5:
                del self.simulation.kernel.rows[row.message, row.subscription]

    @rule(seconds=st.floats(0.001, 70))
    def pass_time(self, seconds: float) -> None:
        self.simulation.advance(seconds)

    @rule()
    def settle_down(self) -> None:
        simulation, plan = self.simulation, self.simulation.plan
        rest = simulation.settle_down()
        assert rest.seconds <= simulation.settings.sweep_seconds
        if not plan.reach.is_live and plan._want(simulation.now):
            # But for what a float loses in the sum.
            assert rest.seconds <= simulation.settings.poll_slow_seconds + 1e-6
        if plan.phase is Phase.ASLEEP:
            assert not plan.unsettled
            assert simulation.kernel.asleep
        if plan._poison.waits or plan._poison.runs or rest.seconds <= simulation.settings.poll_slow_seconds:
            return
        for number in plan._want(simulation.now):
            left = [
                row for row in simulation.kernel.takeable(number) if row.lease is None and row.crashes < 2
            ]
            assert not left, f"rests for {rest.seconds} s in {plan.phase} though {left} could be taken"

    @invariant()
    def leases_are_renewed_in_time(self) -> None:
        simulation = getattr(self, "simulation", None)
        for at in simulation.renewed_at.values() if simulation else ():
            assert simulation.now - at < LEASE_SECONDS * 2 / 3

    @invariant()
    def every_report_is_sent_at_most_once_and_counted_right(self) -> None:
        if hasattr(self, "simulation"):
            simulation = self.simulation
            assert all(count == 1 for count in simulation.reported.values())
            assert sum(lane.held for lane in simulation.plan.lanes.values()) == len(simulation.running)

    def teardown(self) -> None:
        if not hasattr(self, "simulation"):
            return
        simulation = self.simulation
        for writer in list(simulation.kernel.writers):
            simulation.commit(writer)
        for _ in range(400):
            while simulation.running:
                simulation.finish()
            simulation.advance(1)
            if not simulation.kernel.rows:
                break
        assert not simulation.kernel.rows, "in the end everything is taken and finished"
        simulation.settle_down()
        began = simulation.now
        simulation.advance(100)
        if simulation.plan.reach.is_live:
            # Six looks until it sleeps, and a heartbeat every twenty seconds.
            assert simulation.count_looks(began) <= 12


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.integers(0, 2**32), st.floats(0.01, 1), st.floats(1, 30))
def test_polling_pauses_stay_within_their_bounds(seed: int, fast: float, slow: float) -> None:
    plan = Plan(
        Settings.load(poll_fast_seconds=fast, poll_slow_seconds=slow),
        {1: Lane(1)},
        Reachability(frozenset({"broadcast"})),
        now=0.0,
        random=Random(seed),
    )
    now = 0.0
    for _ in range(50):
        step = plan.decide(now)
        if isinstance(step, Look):
            plan.absorb(step, ExchangeAnswer(), sent_at=now, now=now)
        else:
            assert 0 < step.seconds <= slow + 1e-9
            now += step.seconds
