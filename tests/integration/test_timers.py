"""Does a timer tick once per slot, however many workers there are, across their deaths? With real processes."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import connected, until
from tests.integration.test_supervision import supervised

pytestmark = pytest.mark.anyio

SOURCE = """
from runtime import Agent, Tick

clock = Agent("clock")

@clock.every("1s", missed="all", emits="clock.struck")
async def strike(tick: Tick) -> str:
    return tick.slot.isoformat()
"""


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_every_slot_is_ticked_once_by_workers_that_are_killed_and_replaced(
    store: str, stack: Any, tmp_path: Path
) -> None:
    admin = stack.admin_url
    environment = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    url = stack.db_url if store == "direct" else ""
    async with connected(admin) as connection:

        async def struck() -> list[datetime]:
            rows = await connection.fetch(
                "select value #>> '{}' as slot from consciousness_stream where key = 'clock.struck'"
            )
            return sorted(datetime.fromisoformat(row["slot"]) for row in rows)

        async def has(count: int) -> bool:
            return len(await struck()) >= count

        async with supervised(url, tmp_path, "--processes", "2", source=SOURCE, **environment) as run:
            await until(lambda: has(2))
            for child in run.children:
                child.kill()
            await until(lambda: has(5))
        # Nobody is there for some slots.
        missed_from = (await struck())[-1]
        await until(lambda: _is_past(connection, missed_from + timedelta(seconds=4)))
        async with supervised(url, tmp_path, "--processes", "2", source=SOURCE, **environment):
            await until(lambda: has(12))
        found = await struck()
    assert found == [found[0] + timedelta(seconds=number) for number in range(len(found))]


async def _is_past(connection: Any, when: datetime) -> bool:
    return bool(await connection.fetchval("select clock_timestamp() > $1", when))
