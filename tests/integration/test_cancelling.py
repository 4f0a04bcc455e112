"""Does an operator's word reach a handler that runs in another process? Over each way a worker can be woken."""

from pathlib import Path
from typing import Any

import pytest

from runtime.client.stream import connect
from tests.integration.conftest import connected, settings_of, until
from tests.integration.test_supervision import supervised

pytestmark = pytest.mark.anyio

SOURCE = """
import anyio
from runtime import Agent, Context, connect

patient = Agent("patient")

@patient.on("patient.task", concurrency=1, ordered=True)
async def wait(value: str, context: Context) -> None:
    try:
        async with connect() as stream:
            await stream.send("patient.began", value)
            if value != "quick":
                await anyio.sleep(600)
    finally:
        with anyio.CancelScope(shield=True):
            async with connect() as stream:
                await stream.send("patient.cleaned", value)
"""


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_a_handler_that_runs_is_cancelled_and_its_message_ends_as_asked(
    store: str, stack: Any, tmp_path: Path
) -> None:
    environment = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    # So long that only a wake-up can have told it.
    environment["RUNTIME_LEASE_SECONDS"] = "300"
    url = stack.db_url if store == "direct" else ""
    settings = settings_of(stack, database_url=stack.db_url)
    async with connected(stack.admin_url) as connection, connect(settings) as stream:

        async def written(key: str, count: int) -> bool:
            query = "select count(*) from consciousness_stream where key = $1"
            return bool(await connection.fetchval(query, key) == count)

        async with supervised(url, tmp_path, "--processes", "2", source=SOURCE, **environment) as run:
            ready = "select settled from runtime.subscriptions where name = 'patient.wait'"
            await until(lambda: _is(connection, ready))
            await until(
                lambda: run.log.read_text().count(" is live at ") >= 2 * (2 if store == "rest" else 3)
            )
            # One key, in order: the second begins when the first has been cleaned up after.
            first = await stream.send("patient.task", "first")
            second = await stream.send("patient.task", "second")
            third = await stream.send("patient.task", "quick")
            await until(lambda: written("patient.began", 1))
            answer = await stream.operations.cancel(first.id)
            assert answer["deliveries"] == [{"subscription": "patient.wait", "state": "told"}]
            await until(lambda: written("patient.began", 2))
            assert await written("patient.cleaned", 1)
            await stream.operations.cancel(second.id, "patient.wait", outcome="done")
            await until(lambda: _is(connection, "select not exists (select from runtime.deliveries)"))
        letters = await connection.fetch("select message_id, reason from runtime.dead_letters")
        ended = await connection.fetch("select message_id, outcome from runtime.runs order by ended_at")
        processed = await connection.fetchval(
            "select bool_and(processed) from consciousness_stream where key = 'patient.task'"
        )
    assert [tuple(row) for row in letters] == [(first.id, "cancelled")]
    assert [tuple(row) for row in ended] == [
        (first.id, "cancelled"),
        (second.id, "cancelled"),
        (third.id, "done"),
    ]
    assert processed


async def _is(connection: Any, query: str) -> bool:
    return bool(await connection.fetchval(query))
