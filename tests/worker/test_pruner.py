"""Are old messages removed by one worker, in pages, and again after the store was away?"""

import logging
from typing import Any
from uuid import uuid4

import anyio
import pytest

from runtime.settings import Settings
from runtime.store import WorkerCard
from runtime.store.postgres import PostgresStore
from runtime.worker.pruner import keep_retention
from tests.integration.conftest import connected, until

pytestmark = pytest.mark.anyio


async def test_k12_everything_too_old_is_removed_page_by_page_and_the_rest_stays(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runtime.worker.pruner._BATCH", 10)
    monkeypatch.setattr("runtime.worker.pruner._PAUSE_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "runtime.worker.pruner")
    settings = Settings.load(retention_days=1, upkeep_seconds=0.01)
    store = PostgresStore(database)
    card = WorkerCard(uuid4(), "keeper")
    async with connected(database) as connection, anyio.create_task_group() as tasks:
        await connection.execute(
            "insert into consciousness_stream (key, value, created_at) "
            "select 'k', to_jsonb(n), clock_timestamp() - make_interval(days => n % 2 * 2) "
            "from generate_series(1, 45) n"
        )
        tasks.start_soon(keep_retention, store, card.id, settings)

        async def left() -> list[Any]:
            return [
                row["value"] for row in await connection.fetch("select value::int from consciousness_stream")
            ]

        # Nobody has elected it yet: no worker is known.
        assert len(await left()) == 45
        await store.subscribe(card, [])
        # A page ends at the first young message after which nothing old follows in it; none may stop the walk.
        await until(lambda: _is(left, 22))
        assert all(number % 2 == 0 for number in await left())
        await until(lambda: any("removed" in record.message for record in caplog.records))
        tasks.cancel_scope.cancel()
    await store.close()


async def test_a_store_that_is_away_is_said_once_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.load(retention_days=1, upkeep_seconds=0.005)
    asked = 0

    class Away(PostgresStore):
        async def call(self, function: str, arguments: Any) -> Any:
            nonlocal asked
            asked += 1
            return await super().call(function, arguments)

    store = Away("postgresql://postgres@127.0.0.1:1/nowhere", request_seconds=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_retention, store, uuid4(), settings)
        await until(lambda: asked > 6)
        tasks.cancel_scope.cancel()
    assert len([record for record in caplog.records if record.name == "runtime.worker.pruner"]) == 1


async def _is(count: Any, expected: int) -> bool:
    return len(await count()) == expected
