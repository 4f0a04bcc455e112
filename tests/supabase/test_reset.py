"""`supabase db reset` under a running worker: it comes back by itself, and what is written after is not lost."""

import logging
from typing import Any

import anyio
import pytest

from runtime import Agent
from tests.integration.conftest import connected, running, settings_of, settled, until
from tests.supabase.conftest import Cli

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_direct", [False, True], ids=["REST", "direct"])
async def test_g1_a_worker_outlives_db_reset(
    supabase: Cli, stack: Any, is_direct: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="runtime")
    seen: list[int] = []
    agent = Agent("outliving")

    @agent.on("reset.task")
    async def note(value: int) -> None:
        seen.append(value)

    async def insert(connection: Any, *values: int) -> None:
        for value in values:
            await connection.execute(
                "insert into public.consciousness_stream (key, value) values ('reset.task', to_jsonb($1::int))",
                value,
            )

    settings = settings_of(stack, database_url=stack.db_url if is_direct else None, sweep_seconds=3)
    async with running([agent], settings) as worker:
        async with connected(stack.db_url) as connection:
            await until(lambda: settled(connection, "outliving.note"))
            await insert(connection, 1)
            await until(lambda: seen == [1])
        await anyio.to_thread.run_sync(lambda: supabase("db", "reset", database=stack.db_url))
        async with connected(stack.db_url) as connection:
            await insert(connection, 2, 3, 4)
            await until(lambda: sorted(seen) == [1, 2, 3, 4], seconds=60)
        await until(lambda: worker.state == "live", seconds=60)
    assert "was it reset? Subscribing again" in caplog.text
