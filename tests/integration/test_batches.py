"""Do two processes share what comes in batches, and is nothing lost when they die in the middle of one?"""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import connected, settled, until
from tests.integration.test_supervision import supervised

pytestmark = pytest.mark.anyio

SOURCE = """
import os
import anyio
from runtime import Agent, BatchContext, Message, Reject, Retry

ledger = Agent("ledger")
name = str(os.getpid())

@ledger.on("ledger.entry", batch=20, within=0.05, concurrency=2, retry=Retry(first_seconds=0.05))
async def book(entries: list[Message[int]], context: BatchContext) -> None:
    await anyio.sleep(0.1)
    for entry in entries:
        if entry.value == 13:
            context.fail(entry, Reject("unlucky"))
        elif entry.value == 14 and entry.attempt == 1:
            context.fail(entry, OSError("once"))
        context.emit("ledger.booked", {"entry": entry.value, "with": len(entries), "by": name}, cause=entry)
"""


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_g4_every_message_of_every_batch_is_booked_once_though_workers_are_killed(
    store: str, stack: Any, tmp_path: Path
) -> None:
    admin = stack.admin_url
    environment = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    environment["RUNTIME_LEASE_SECONDS"] = "1"
    url = stack.db_url if store == "direct" else ""
    count = 0
    async with connected(admin) as connection:

        async def is_settled() -> bool:
            return await settled(connection, "ledger.book")

        async def waiting() -> int:
            return int(await connection.fetchval("select count(*) from runtime.deliveries"))

        async def names() -> list[Any]:
            return list(
                await connection.fetch(
                    "select distinct value ->> 'by' from consciousness_stream where key = 'ledger.booked'"
                )
            )

        async def is_shared() -> bool:
            """Whether both take part; there is always more to do until they do."""
            nonlocal count
            if await waiting() < 200:
                await connection.execute(
                    "insert into consciousness_stream (key, value) "
                    "select 'ledger.entry', to_jsonb(n) from generate_series($1::int + 1, $1::int + 200) n",
                    count,
                )
                count += 200
            return len(await names()) == 2

        async def is_done() -> bool:
            return await waiting() == 0

        async with supervised(url, tmp_path, "--processes", "2", source=SOURCE, **environment) as run:
            await until(is_settled)
            await until(is_shared)
            run.children[0].kill()
            await until(is_done)
        rows = await connection.fetch(
            "select (m.value ->> 'entry')::int as entry, (m.value ->> 'with')::int as size, m.value ->> 'by' as by, "
            "e.value as cause from consciousness_stream m join consciousness_stream e on e.id = m.parent_id "
            "where m.key = 'ledger.booked' order by 1"
        )
        dead = await connection.fetch("select reason, error from runtime.dead_letters")
        tries = await connection.fetchval("select count(*) from runtime.runs where outcome = 'failed'")
    assert [row["entry"] for row in rows] == [n for n in range(1, count + 1) if n != 13]
    assert all(str(row["entry"]) == row["cause"] for row in rows)
    assert [(row["reason"], row["error"]) for row in dead] == [("rejected", "Reject: unlucky")]
    assert tries == 1
    assert max(row["size"] for row in rows) == 20
    assert len({row["by"] for row in rows}) >= 2
