"""Bringing the database of a stack up to date: the roles and schemas of Supabase, then this package's migrations."""

import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import anyio

from runtime.local import keys
from runtime.local.bootstrap import change_password, check_decoding, prepare_cluster, prepare_database
from runtime.local.migrations import apply_migrations, migrations_folder, read_migrations
from runtime.local.postgres import PostgresServer

Result = TypeVar("Result")


def prepare_server(server: PostgresServer) -> None:
    """Bring the database of a stack's own PostgreSQL up to date; give its superuser a password of its own first.

    Raises:
        LocalStackError: it cannot be done.
    """
    if server.has_published_password:
        password = secrets.token_urlsafe(32)
        _wait_for(change_password, server.url(), password)
        server.keep_password(password)
    # Not as a superuser: migrations call code that other users may have put into the database.
    _wait_for(_prepare, server.url(), server.url(user=keys.DB_USER), True)


def prepare_foreign(url: str) -> None:
    """Bring the database of somebody else's PostgreSQL up to date.

    Raises:
        LocalStackError: it cannot be done.
    """
    _wait_for(check_decoding, url)
    _wait_for(_prepare, url, url, False)


async def _prepare(url: str, migrating_url: str, is_ours: bool) -> None:
    await prepare_cluster(url, passwords=is_ours)
    await prepare_database(url)
    await apply_migrations(migrating_url, read_migrations(migrations_folder()))


def _wait_for(function: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
    # In a thread, so that it works whether or not the caller's has an event loop already.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(anyio.run, function, *arguments).result()
