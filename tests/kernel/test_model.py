"""Does the kernel keep its promises whatever happens, in whatever order?"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.kernel.machine import machine_for, open_database
from tests.kernel.state import Database

# Some 1,000 steps, many of them of dozens of calls. A longer run by hand: MODEL_EXAMPLES=2000.
_BY_HAND = os.environ.get("MODEL_EXAMPLES")

# Making a failing example smaller takes up to five minutes on each version. Among all tests the example as it was
# found is enough, with the blob that repeats it; a run by hand (CI=true draws the same examples) makes it smaller.
_PHASES = tuple(Phase) if _BY_HAND else (Phase.explicit, Phase.reuse, Phase.generate)


@pytest.fixture
def model_database(kernel_database: str) -> Iterator[Database]:
    """One database for all examples; the machine empties it before each."""
    database = open_database(kernel_database)
    try:
        yield database
    finally:
        database.close()


@pytest.mark.timeout(0)
def test_the_kernel_keeps_to_the_model(model_database: Database) -> None:
    run_state_machine_as_test(
        machine_for(model_database),
        settings=settings(
            max_examples=int(_BY_HAND or 20),
            stateful_step_count=50,
            deadline=None,
            phases=_PHASES,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
