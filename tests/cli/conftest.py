"""A shell without a stream, and one whose environment names a stack with a database of the test's own."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import Shell
from tests.preforked import Preforked


@pytest.fixture
def nowhere(tmp_path: Path, preforked: Preforked) -> Iterator[Shell]:
    """A shell in which nothing says where the stream is."""
    with closing(Shell(tmp_path, preforked=preforked)) as shell:
        yield shell


@pytest.fixture
def shell(tmp_path: Path, stack: Any, preforked: Preforked) -> Iterator[Shell]:
    """A shell whose environment names a stack, as one that uses a hosted project would."""
    named = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    with closing(Shell(tmp_path, named, preforked=preforked)) as shell:
        yield shell


@pytest.fixture
def empty_database(cluster: Any) -> Iterator[str]:
    """The URL of a database as Supabase hands it out, without the migrations."""
    cluster.execute("create database without_migrations owner postgres")
    yield cluster.url("without_migrations")
    cluster.drop_database("without_migrations")
