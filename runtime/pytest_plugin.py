"""The pytest plugin: `harness` gives each test a stream of its own over a real PostgreSQL, in a few milliseconds."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.errors import SettingsError
from runtime.extras import needing

# Every pytest run on the machine loads this module: heavy imports wait until a fixture is used.
if TYPE_CHECKING:
    from runtime.local.test_cluster import Cluster
    from runtime.testing import Harness


def pytest_configure(config: pytest.Config) -> None:
    """Let agents import each other as in `runtime run`, if their folder is in `pythonpath`."""
    if folders := config.getini("pythonpath"):
        from runtime.agent.modules import AliasFinder

        sys.meta_path.insert(0, AliasFinder([Path(folder).resolve() for folder in folders]))


@pytest.fixture(scope="session")
def runtime_cluster() -> "Iterator[Cluster]":
    """A PostgreSQL from the wheel, for this run of the tests; each test gets a database of it."""
    try:
        with needing("The harness", "local"):
            from runtime.local.test_cluster import running_cluster
    except SettingsError as error:
        pytest.fail(str(error), pytrace=False)

    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def harness(runtime_cluster: "Cluster") -> "Iterator[Harness]":
    """An empty stream for one test, with every migration."""
    from runtime.local import keys
    from runtime.testing import Harness

    name = runtime_cluster.make_database()
    yield Harness(runtime_cluster.url(name), runtime_cluster.url(name, user=keys.SUPERUSER))
    runtime_cluster.drop_database(name)
