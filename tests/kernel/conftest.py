"""A kernel on PostgreSQL 15 and on 18, and connections to it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from runtime.local import keys
from tests.kernel.driver import Worker, connected

Connect = Callable[[], AbstractAsyncContextManager[Any]]


@pytest.fixture
def connect(kernel_database: str) -> Connect:
    """Opens one more connection, as the role postgres, who owns the schema."""
    return lambda: connected(kernel_database)


@pytest.fixture
def connect_as_superuser(kernel_database: str) -> Connect:
    """Opens one more connection as the superuser."""
    return lambda: connected(kernel_database.replace("postgres:", f"{keys.SUPERUSER}:", 1))


@pytest.fixture
async def db(connect: Connect) -> AsyncIterator[Any]:
    """A connection to a fresh kernel."""
    async with connect() as connection:
        yield connection


@pytest.fixture
async def worker(connect: Connect) -> AsyncIterator[Worker]:
    """A worker with a connection of its own."""
    async with connect() as connection:
        yield Worker(connection)
