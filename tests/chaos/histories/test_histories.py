"""A few random histories on each version, and whether a kernel with a known fault would be found out."""

from collections import defaultdict
from dataclasses import replace

import pytest

from tests.chaos.histories.__main__ import one_history
from tests.chaos.histories.checks import judge
from tests.chaos.histories.history import History, Prune, Run, Sent
from tests.conftest import Cluster

SEED = 1
STEPS = 20
EMPTY = {
    "stood still": [], "deliveries": 0, "leases": 0, "unmarked": 0, "dead_letters": 0, "expired": 0,
    "processed": {}, "waiting": [],
}  # fmt: skip


@pytest.mark.timeout(0)
@pytest.mark.parametrize("version", ["cluster_15", "cluster"])
def test_g1_g8_k9_a_random_history_ends_as_it_should(request: pytest.FixtureRequest, version: str) -> None:
    cluster: Cluster = request.getfixturevalue(version)
    # The dice are the same each time; the database and the scheduler throw their own. New ones are for the command.
    outcome = one_history(cluster, SEED, STEPS)
    assert outcome.problems == []
    # It did happen.
    assert outcome.messages >= 3 * STEPS
    assert outcome.runs >= outcome.messages
    assert outcome.counts["connections killed"] > 0
    assert min(outcome.counts["steps"], outcome.counts["waits"]) > 0


@pytest.mark.timeout(0)
def test_o1_a_kernel_that_unparks_the_first_of_a_key_only_is_found_out(cluster: Cluster) -> None:
    # About every second history meets it.
    for seed in range(60):
        outcome = one_history(
            cluster, seed, STEPS, rest=False, broken=("K9 unparks the first if it is parked",)
        )
        if any("stood still" in problem for problem in outcome.problems):
            return
    pytest.fail("none of so many histories met it")


def history_of(*runs: tuple[int, int, int]) -> History:
    """Runs of one lane: (message, began, ended); each message was committed before the next was begun."""
    history = History(now=1000)
    for message in sorted({message for message, _, _ in runs}):
        history.messages[message] = Sent(message, "lane.k0", 2 * message, 2 * message + 1)
        for subscription in (
            "orderly.exact",
            "orderly.blocking",
            "orderly.limited",
            "wide.all",
            "wide.limited",
        ):
            history.ends[message, subscription] = 1
    history.runs = [
        Run((message, "orderly.exact"), "lane.k0", "lease", began, ended, "done")
        for message, began, ended in runs
    ]
    return history


def test_two_that_run_at_once_are_told() -> None:
    assert judge(history_of((1, 10, 20), (2, 21, 30)), EMPTY) == []
    (problem, *_more) = judge(history_of((1, 10, 20), (2, 19, 30)), EMPTY)
    assert problem.startswith("K9:")


def test_what_overtakes_is_told() -> None:
    (problem,) = judge(history_of((2, 10, 20), (1, 21, 30)), EMPTY)
    assert problem.startswith("G8:")


@pytest.mark.parametrize(
    ("prunes", "released_at", "is_wrong"),
    [
        ([], None, True),
        ([], 25, False),
        ([], 31, True),
        ([Prune(range(1, 2), 15, 22)], None, False),
        ([Prune(range(1, 2), 22, 35)], None, False),
        ([Prune(range(1, 2), 5, 8)], None, True),
        ([Prune(range(1, 2), 31, 35)], None, True),
        ([Prune(range(2, 9), 22, 25)], None, True),
    ],
)
def test_what_overtakes_a_dead_letter_that_blocks_is_told(
    prunes: list[Prune], released_at: int | None, is_wrong: bool
) -> None:
    history = history_of((1, 10, 20), (2, 30, 40))
    place = (1, "orderly.blocking")
    history.runs = [replace(run, place=(run.place[0], "orderly.blocking")) for run in history.runs]
    history.runs[0].outcome = "dead"
    history.prunes = prunes
    history.releases = defaultdict(list, {place: [released_at]} if released_at else {})
    assert [problem[:3] for problem in judge(history, EMPTY)] == ["G8:"] * is_wrong


def test_what_is_lost_or_done_twice_is_told() -> None:
    history = history_of((1, 10, 20))
    history.ends[1, "wide.all"] = 0
    assert judge(history, {**EMPTY, "expired": 1}) == []
    (problem,) = judge(history, EMPTY)
    assert problem.startswith("G1:")
    history.ends[1, "wide.all"] = 2
    assert any(problem.startswith("G1:") for problem in judge(history, EMPTY))


def test_what_is_left_is_told() -> None:
    for table in ("deliveries", "unmarked", "dead_letters"):
        assert judge(History(), {**EMPTY, table: 1}) == [f"{table}: 1 are left"]


def test_processed_is_looked_at() -> None:
    history = history_of((1, 10, 20))
    assert judge(history, {**EMPTY, "processed": {1: True}}) == []
    (problem,) = judge(history, {**EMPTY, "processed": {1: False}})
    assert problem.startswith("K10:")
