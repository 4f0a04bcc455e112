"""The pgTAP tests of `supabase/tests/`, by pg_prove and as the role postgres, as `supabase test db` runs them.

Not by that command itself: it starts pg_prove in a container, whatever database it is given, and so needs Docker.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.local.keys import SUPERUSER
from runtime.local.test_cluster import Cluster
from tests.conftest import DEBIAN_15
from tests.supabase.conftest import SUPABASE

TESTS = sorted((SUPABASE / "tests").glob("*.sql"))


@pytest.fixture
def with_pgtap(cluster_15: Cluster) -> Iterator[str]:
    """A database with every migration, and pgTAP where the CLI puts it."""
    if not Path("/usr/share/postgresql/15/extension/pgtap.control").exists():
        pytest.skip("pgTAP is not installed: apt-get install postgresql-15-pgtap")
    name = cluster_15.make_database()
    psql(cluster_15.url(name, user=SUPERUSER), "-c", "create extension pgtap with schema extensions")
    yield cluster_15.url(name)
    cluster_15.drop_database(name)


def psql(url: str, *arguments: str) -> None:
    subprocess.run(
        [DEBIAN_15 / "psql", url, "-v", "ON_ERROR_STOP=1", "-q", *arguments],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def test_every_file_passes(with_pgtap: str) -> None:
    prove = shutil.which("pg_prove")
    if prove is None:
        pytest.skip("pg_prove is not installed: apt-get install libtap-parser-sourcehandler-pgtap-perl")
    assert len(TESTS) == 3
    done = subprocess.run(
        [prove, "--dbname", with_pgtap, "--psql-bin", DEBIAN_15 / "psql", "--verbose", *TESTS],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
