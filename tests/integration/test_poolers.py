"""The fast path: chosen by DATABASE_URL alone, the same through each kind of pooler, over a handful of connections."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from runtime import Agent, Message
from runtime.local.test_cluster import Cluster
from runtime.settings import Settings
from tests.integration.conftest import connected, running, settled, until
from tests.pgbouncer import pooler

pytestmark = [pytest.mark.anyio, pytest.mark.own_stack]

# Four of the store, one that listens.
_MOST_CONNECTIONS = 5
_MESSAGES = 300
WAYS = {"direct": "live", "session": "live", "transaction": "polling"}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, cluster: Cluster, database: str) -> Iterator[tuple[str, str]]:
    """The name of a way, and the URL of the database by it."""
    name: str = request.param
    if name == "direct":
        yield name, database
        return
    with pooler(cluster.server.port, name) as running_pooler:
        yield name, running_pooler.url(urlsplit(database).path.strip("/"))


async def test_a_database_url_is_enough_by_each_way(
    way: tuple[str, str], database: str, seen: list[Any]
) -> None:
    name, url = way
    agent = Agent("swift")

    @agent.on("fast.path", concurrency=50)
    async def note(message: Message[Any]) -> None:
        seen.append(message.value)

    settings = Settings.load(
        supabase_url=None, supabase_key=None, database_url=url, poll_fast_seconds=0.02, poll_slow_seconds=0.1
    )
    async with running([agent], settings, live=WAYS[name] == "live") as worker, connected(database) as writer:
        await until(lambda: settled(writer, "swift.note"))
        await writer.execute(
            "insert into public.consciousness_stream (key, value, agent) "
            "select 'fast.path', to_jsonb(n), 'test' from generate_series(1, $1::int) n",
            _MESSAGES,
        )
        await until(lambda: len(seen) == _MESSAGES)
        await until(lambda: worker.counts.get("done") == _MESSAGES)
        assert sorted(seen) == list(range(1, _MESSAGES + 1))
        assert worker.state == WAYS[name]
        open_now = await writer.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() "
            "and backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        assert open_now <= _MOST_CONNECTIONS
