"""Which tests of a whole run there are, which of them stay together, and which begin first."""

from collections import Counter
from zlib import crc32

import pytest
from xdist.scheduler import LoadScopeScheduling

# Long tests that share no server: each begins on whatever worker is free, and before short ones, so that at the end
# of a run there is not one long test on one core.
_APART = (
    "tests/chaos/test_chaos.py",
    "tests/integration/test_external.py",
    "tests/test_docs.py",
    "tests/kernel/test_model.py",
    "tests/cli/test_demo.py",
    "tests/cli/test_dev.py",
    "tests/chaos/test_leftovers.py",
    "tests/integration/test_odd_rows_shown.py",
    "tests/integration/test_deploying.py",
    "tests/cli/test_operate.py",
    "tests/cli/test_doctor.py",
    "tests/cli/test_read.py",
    "tests/cli/test_readers.py",
    "tests/cli/test_signals.py",
    "tests/cli/test_escapes.py",
    "tests/cli/test_run.py",
    "tests/cli/test_watch.py",
    "tests/integration/test_recovery.py",
    "tests/integration/test_supervision.py",
)
# A stack with a million rows is made once for all files of the dashboard.
_TOGETHER = ("tests/dashboard/",)

# The fixtures of the versions that the kernel's tests run on, and their names in the names of tests.
VERSIONS = {"cluster_15": "pg15", "cluster_17": "pg17", "cluster": "pg18"}

# Set in a run of all checks; named tests, and the matrix of releases, run on each version.
BY_TURNS = "TESTS_BY_TURNS"


def has_its_turn(item: pytest.Item) -> bool:
    """Return whether the test runs where each test of the kernel runs on one version alone, by turns.

    The turn comes from the test's name: it is the same in every run, and each version has a third of each rule's tests.
    """
    version = VERSIONS.get(_parameters(item).get("kernel_database", ""))
    if version is None:
        return True
    name = item.nodeid.replace(version, "", 1)
    return version == list(VERSIONS.values())[crc32(name.encode()) % len(VERSIONS)]


def _parameters(item: pytest.Item) -> dict[str, str]:
    return getattr(getattr(item, "callspec", None), "params", {})


class LongestFirst(LoadScopeScheduling):
    """A file's tests stay together, since they may share servers, but for long ones that share none."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


def scope(nodeid: str) -> str:
    """The name of the tests that go to a worker together: a file, a folder, or a test alone."""
    file = nodeid.partition("::")[0]
    if file in _APART:
        return nodeid
    return next((folder for folder in _TOGETHER if file.startswith(folder)), file)


def longest_first(items: list[pytest.Item]) -> None:
    """Put tests in the order in which they begin: what shares most, long tests, then the files with most tests."""
    sizes = Counter(scope(item.nodeid) for item in items)

    def rank(item: pytest.Item) -> tuple[int, int]:
        name = scope(item.nodeid)
        if name in _TOGETHER:
            return (0, 0)
        file = item.nodeid.partition("::")[0]
        return (1, _APART.index(file)) if file in _APART else (2, -sizes[name])

    items.sort(key=rank)
