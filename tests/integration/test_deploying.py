"""Is a new version deployed under load without anything lost or done twice? Processes replaced one after another."""

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime.client.stream import connect
from runtime.settings import Settings
from tests.integration.conftest import connected, settled, until
from tests.integration.test_supervision import Run, supervised

pytestmark = pytest.mark.anyio

VERSIONS = 4
SUBSCRIPTIONS = ("shop.take", "shop.pack", "shop.ship")
SOURCE = """
import time
import anyio
from runtime import Agent, Context

VERSION = {version}
shop = Agent("shop")

@shop.on("order.*", emits="parcel.made", ordered=True)
async def take(number: int) -> int:
    await anyio.sleep(0.002)
    return number

@shop.on("parcel.made", concurrency=8)
async def pack(number: int, context: Context) -> None:
    await anyio.sleep(0.02)
    context.emit("parcel.packed", [number, VERSION])

@shop.on("parcel.packed", emits="parcel.sent")
def ship(packed: list[int]) -> list[int]:
    time.sleep(0.01)
    return packed
"""


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_g9_a_new_version_deployed_under_load_loses_nothing_and_doubles_nothing(
    store: str, stack: Any, tmp_path: Path
) -> None:
    environment = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    url = stack.db_url if store == "direct" else ""
    settings = Settings.load(
        supabase_url=stack.api_url, supabase_key=stack.service_role_key, database_url=url or None
    )
    sent: list[int] = []
    load = anyio.Event()

    async def send() -> None:
        async with connect(settings) as stream:
            while not load.is_set():
                number = len(sent)
                await stream.send(f"order.{number % 5}", number)
                sent.append(number)
                await anyio.sleep(0.002)

    admin = stack.admin_url
    async with (
        connected(admin) as connection,
        AsyncExitStack() as running,
        anyio.create_task_group() as tasks,
    ):
        old: Run | None = None
        for version in range(VERSIONS):
            folder = tmp_path / str(version)
            folder.mkdir()
            new = await running.enter_async_context(
                supervised(url, folder, source=SOURCE.format(version=version), **environment)
            )
            if old is None:
                await until(lambda: settled(connection, *SUBSCRIPTIONS))
                tasks.start_soon(send)

            async def has_subscribed(workers: int = 1 if old is None else 2) -> bool:
                return await connection.fetchval("select count(*) from runtime.workers") == workers

            async def has_begun(version: str = str(version)) -> bool:
                packed = await connection.fetchval(
                    "select count(*) from consciousness_stream where key = 'parcel.packed' and value ->> 1 = $1",
                    version,
                )
                return bool(packed > 10)

            await until(has_subscribed)
            if old is not None:
                old.process.terminate()
                with anyio.fail_after(60):
                    assert await old.process.wait() == 0, old.log.read_text()[-3000:]
            # Only now: beside the old one, which is awake and quicker to look, there may be nothing for it.
            await until(has_begun)
            old = new
        load.set()

        async def is_over() -> bool:
            return not await connection.fetchval("select count(*) from runtime.deliveries")

        await until(is_over)
        runs = await connection.fetch(
            "select s.name, r.outcome, r.attempt, count(*), count(distinct r.message_id) as messages "
            "from runtime.runs r join runtime.subscriptions s on s.id = r.subscription group by 1, 2, 3"
        )
        assert {tuple(row) for row in runs} == {
            (name, "done", 1, len(sent), len(sent)) for name in SUBSCRIPTIONS
        }
        results = [
            json.loads(row["value"])
            for row in await connection.fetch(
                "select value from consciousness_stream where key = 'parcel.sent'"
            )
        ]
        assert sorted(number for number, _ in results) == sent
        assert {version for _, version in results} == set(range(VERSIONS))
        assert not await connection.fetchval("select count(*) from runtime.dead_letters")
