"""Do two processes keep a limit between them, and does nobody sleep while there is room? As processes."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import connected, settled, until
from tests.integration.test_supervision import supervised

pytestmark = pytest.mark.anyio

SOURCE = """
import os
import anyio
from runtime import Agent, Context

held = Agent("held")

@held.on("held.slow", concurrency=2, concurrency_total=3)
async def slow(value: int, context: Context) -> None:
    await anyio.sleep(0.02)
    context.emit("held.by", os.getpid())

@held.on("held.paced", rate="20/s")
async def paced(value: int) -> None: ...
"""
SLOW = 120
PACED = 30


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_limits_hold_across_processes_and_all_is_done(store: str, stack: Any, tmp_path: Path) -> None:
    environment = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    # So rarely that a worker which slept on would be noticed.
    environment |= {"RUNTIME_SWEEP_SECONDS": "300", "RUNTIME_LEASE_SECONDS": "60"}
    url = stack.db_url if store == "direct" else ""
    most = 0
    async with connected(stack.admin_url) as connection:

        async def are_settled() -> bool:
            return await settled(connection, "held.slow", "held.paced")

        async def is_done() -> bool:
            nonlocal most
            leased = await connection.fetchval(
                "select count(*) from runtime.deliveries d join runtime.subscriptions s on s.id = d.subscription "
                "where s.name = 'held.slow' and d.lease is not null"
            )
            most = max(most, leased)
            return not await connection.fetchval("select count(*) from runtime.deliveries")

        async with supervised(url, tmp_path, "--processes", "2", source=SOURCE, **environment) as run:
            await until(are_settled)
            await until(lambda: run.log.read_text().count(" is live at ") >= 2)
            began = await connection.fetchval("select clock_timestamp()")
            await connection.execute(
                "insert into consciousness_stream (key, value) "
                "select 'held.slow', to_jsonb(n) from generate_series(1, $1::int) n "
                "union all select 'held.paced', to_jsonb(n) from generate_series(1, $2::int) n",
                SLOW, PACED,
            )  # fmt: skip
            await until(is_done)
        ended = await connection.fetchval(
            "select max(r.ended_at) from runtime.runs r join runtime.subscriptions s on s.id = r.subscription "
            "where s.name = 'held.paced'"
        )
        done = await connection.fetchval("select count(*) from runtime.runs where outcome = 'done'")
        by = await connection.fetch("select distinct value from consciousness_stream where key = 'held.by'")
    assert done == SLOW + PACED
    assert most == 3
    assert len(by) == 2
    # Three at once in the beginning, and then twenty a second: sooner it cannot end, whatever the machine does.
    assert (ended - began).total_seconds() >= (PACED - 3) / 20
