"""Workers over a whole stack: a real PostgreSQL, a real gateway process, real sockets."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg
import pytest

from runtime import Agent
from runtime.settings import Settings
from runtime.worker.worker import Attempt, Worker
from tests.integration.external import ExternalStack

DEADLINE_SECONDS = 120.0


def settings_of(stack: Any, **overrides: object) -> Settings:
    """Settings of a worker over REST and Realtime, as a newcomer has them; `database_url` adds the direct store."""
    return Settings.load(
        **{
            "supabase_url": stack.api_url,
            "supabase_key": stack.service_role_key,
            "database_url": None,
            "lease_seconds": 5,
            "drain_seconds": 5,
            **overrides,
        }
    )


async def until(
    condition: Callable[[], bool | Awaitable[bool]], *, seconds: float = DEADLINE_SECONDS
) -> None:
    """Return when the condition holds; fail at the deadline.

    It is looked at every few milliseconds, or after four times as long as a look took: what asks a gateway would
    else keep a core busy.
    """
    with anyio.fail_after(seconds):
        while True:
            began = anyio.current_time()
            holds = condition()
            if not isinstance(holds, bool):
                holds = await holds
            if holds:
                return
            await anyio.sleep(min(max(0.005, 4 * (anyio.current_time() - began)), 0.2))


@asynccontextmanager
async def running(
    agents: list[Agent], settings: Settings, *, live: bool = True, client: Any = None
) -> AsyncIterator[Worker]:
    """A worker that runs, live or at least subscribed, and is stopped in good order in the end."""
    attempts: list[Attempt] = []
    worker = Worker(agents, settings, observer=attempts.append, client=client)
    worker.attempts = attempts  # type: ignore[attr-defined]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await until(lambda: worker.state == "live" if live else worker.counts.get("exchanges", 0) > 0)
        try:
            yield worker
        finally:
            worker.stop()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A plain connection, as any other program's."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def settled(connection: Any, *names: str) -> bool:
    """Whether these subscriptions are settled, so that what is written now reaches them."""
    count = await connection.fetchval(
        "select count(*) from runtime.subscriptions where settled and name = any ($1)", list(names)
    )
    return bool(count == len(names))


async def outcomes(url: str) -> Counter[tuple[str, str]]:
    """How many attempts ended how, by subscription. As the superuser: the schema is private."""
    async with connected(url) as connection:
        rows = await connection.fetch(
            "select s.name, r.outcome, count(*) from runtime.runs r "
            "join runtime.subscriptions s on s.id = r.subscription group by 1, 2"
        )
    return Counter({(row["name"], row["outcome"]): row["count"] for row in rows})


@pytest.fixture
def seen() -> list[Any]:
    """Where handlers note what they got."""
    return []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what would stop, break or alter a stack that is not the tests' own."""
    if ExternalStack.named_by() is None:
        return
    reason = (
        "needs a stack of its own: it stops the gateway or alters the schema. Unset SUPABASE_URL to run it"
    )
    for item in items:
        if item.get_closest_marker("own_stack"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def stack(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The stack that the environment names, emptied; otherwise one of the test's own."""
    external = ExternalStack.named_by()
    if external is None:
        yield request.getfixturevalue("stack")
    else:
        with external.lent() as lent:
            yield lent
