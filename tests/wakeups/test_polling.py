"""How often is looked while no push path is live?"""

from itertools import pairwise
from random import Random

import hypothesis.strategies as st
from hypothesis import given

from runtime.wakeups.polling import Pace


def test_the_pace_slows_down_when_nothing_happens_and_is_fast_again_after_activity() -> None:
    pace = Pace(0.1, 2.0, Random(1))
    waits = [pace.next_seconds() for _ in range(20)]
    assert 0.09 <= waits[0] <= 0.11
    assert all(later > earlier * 1.1 for earlier, later in pairwise(waits[:6]))
    assert 1.8 <= waits[-1] <= 2.0
    pace.active()
    assert pace.next_seconds() <= 0.11


@given(st.integers(), st.floats(0.001, 10), st.floats(1, 100), st.lists(st.booleans(), max_size=50))
def test_no_wait_leaves_the_bounds(seed: int, fast: float, factor: float, happens: list[bool]) -> None:
    slow = fast * factor
    pace = Pace(fast, slow, Random(seed))
    for is_active in happens:
        if is_active:
            pace.active()
        assert fast * 0.9 <= pace.next_seconds() <= slow


def test_workers_do_not_look_at_the_same_moments() -> None:
    assert len({Pace(0.1, 2.0, Random(seed)).next_seconds() for seed in range(20)}) == 20
