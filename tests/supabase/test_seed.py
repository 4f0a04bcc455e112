"""The demo stream of `supabase/seed.sql`: there once after `supabase db reset`, and what the newsroom itself writes."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime import Agent, Message
from runtime.agent.discovery import discover
from runtime.client.stream import connect
from runtime.local.keys import SUPERUSER
from runtime.local.test_cluster import Cluster
from runtime.testing import Harness
from tests.kernel.driver import connected
from tests.supabase.conftest import SUPABASE, Cli

pytestmark = pytest.mark.anyio

SEED = SUPABASE / "seed.sql"
MESSAGES = (
    "select key, agent, value, processed, parent_id is null as is_first from consciousness_stream order by id"
)
PUBLISHED = "select tablename from pg_publication_tables where pubname = 'supabase_realtime' order by 1"
NEWSROOM = ["note.found", "draft.written", "draft.approved", "site.published"]


@pytest.fixture(params=["pg15", "pg18"])
def used(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """A stream in use, on both versions."""
    cluster: Cluster = request.getfixturevalue("cluster_15" if request.param == "pg15" else "cluster")
    name = cluster.make_database()
    yield Harness(cluster.url(name), cluster.url(name, user=SUPERUSER))
    cluster.drop_database(name)


async def stream_of(harness: Harness) -> list[dict[str, Any]]:
    async with connected(address(harness)) as connection:
        return [dict(row) for row in await connection.fetch(MESSAGES)]


async def plant(harness: Harness) -> list[dict[str, Any]]:
    async with connected(address(harness)) as connection:
        await connection.execute(SEED.read_text(encoding="utf-8"))
    return await stream_of(harness)


def address(harness: Harness) -> str:
    assert harness.settings.database_url is not None
    return harness.settings.database_url.get_secret_value()


async def test_db_reset_leaves_the_demo_stream_and_nothing_else(supabase: Cli, used: Harness) -> None:
    await used.send("left.over", 1)
    await anyio.to_thread.run_sync(lambda: supabase("db", "reset", database=address(used)))
    planted = await stream_of(used)
    assert [each["key"] for each in planted] == [*NEWSROOM, "note.found", "note.found"]
    assert [each["processed"] for each in planted] == [True] * 4 + [False] * 2
    assert [each["is_first"] for each in planted] == [True, False, False, False, True, True]
    assert await plant(used) == planted

    heard: list[str] = []
    agent = Agent("reader")

    @agent.on("note.found", start="earliest")
    def read(message: Message[Any]) -> None:
        heard.append(message.value["path"])

    async with used.running(agent):
        await used.drain()
    # Plain functions run side by side, so they may end in any order.
    assert sorted(heard) == ["fencing.md", "leases.md", "seed.md"]
    async with connected(address(used)) as connection:
        published = await connection.fetch(PUBLISHED)
    assert [row["tablename"] for row in published] == ["beats", "consciousness_stream"]


async def test_the_newsroom_writes_what_the_seed_says_it_wrote(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEWSROOM_OUTPUT", str(tmp_path / "site"))
    for name in ("NEWSROOM_NOTES", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    planted = await plant(harness)
    agents = [
        a for a in discover([SUPABASE.parent / "runtime" / "cli" / "newsroom"]) if a.name != "archivist"
    ]
    async with harness.running(*agents), connect(harness.settings) as stream:
        await stream.operations.replay("writer.draft")
        await harness.drain()
    await harness.assert_no_dead_letters()
    written = (await stream_of(harness))[len(planted) :]
    # Beside the seed's own story, the two notes that waited.
    assert Counter(each["key"] for each in written) == dict.fromkeys(NEWSROOM[1:], 3)
    for told in planted[1:4]:
        assert {key: told[key] for key in ("key", "agent", "value")} in [
            {key: each[key] for key in ("key", "agent", "value")} for each in written
        ]
