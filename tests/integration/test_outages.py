"""Is anything lost or doubled when the socket, the gateway or a worker goes away?"""

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process

from runtime import Agent, connect
from runtime.message import Draft
from tests.integration.conftest import connected, outcomes, running, settings_of, settled, until

pytestmark = pytest.mark.anyio

SLOW = Path(__file__).parent / "slow_agent.py"


@pytest.mark.own_stack
async def test_g7_the_gateway_is_killed_and_comes_back(stack: Any) -> None:
    seen: Counter[int] = Counter()
    agent = Agent("steady")

    @agent.on("steady.task")
    async def note(value: int) -> None:
        seen[value] += 1

    # Realtime for wake-ups, and a direct connection, so that only the way in is lost with the gateway.
    settings = settings_of(stack, database_url=stack.db_url, notify=False)
    async with running([agent], settings) as worker, connected(stack.db_url) as connection:
        await until(lambda: settled(connection, "steady.note"))
        sent = 0

        async def send(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                await connection.execute(
                    "insert into consciousness_stream (key, value) values ('steady.task', to_jsonb($1::int))",
                    sent,
                )
                sent += 1

        await send(20)
        await until(lambda: len(seen) == sent)
        stack.kill_gateway()
        await until(lambda: worker.state == "polling")
        await send(50)
        await until(lambda: len(seen) == sent)
        assert worker.state == "polling"
        await anyio.to_thread.run_sync(stack.start_gateway)
        await send(20)
        await until(lambda: worker.state == "live")
        woken = sum(worker.counts[name] for name in worker.counts if name.startswith("wake-ups"))
        await send(20)
        await until(lambda: len(seen) == sent)
        assert sum(worker.counts[name] for name in worker.counts if name.startswith("wake-ups")) > woken
    assert seen == Counter(range(sent))
    assert await outcomes(stack.admin_url) == {("steady.note", "done"): sent}


@pytest.mark.own_stack
async def test_g7_a_gateway_that_is_store_and_socket_is_killed_and_comes_back(stack: Any) -> None:
    seen: Counter[int] = Counter()
    agent = Agent("rest")

    @agent.on("rest.task")
    async def note(value: int) -> None:
        seen[value] += 1

    settings = settings_of(stack)
    async with running([agent], settings) as worker, connected(stack.db_url) as connection:
        await until(lambda: settled(connection, "rest.note"))
        await connection.execute(
            "insert into consciousness_stream (key, value) select 'rest.task', to_jsonb(n) from generate_series(0, 9) n"
        )
        await until(lambda: len(seen) == 10)
        stack.kill_gateway()
        await until(lambda: worker.state == "polling")
        await connection.execute(
            "insert into consciousness_stream (key, value) "
            "select 'rest.task', to_jsonb(n) from generate_series(10, 59) n"
        )
        await anyio.to_thread.run_sync(stack.start_gateway)
        await until(lambda: len(seen) == 60 and worker.state == "live")
    assert seen == Counter(range(60))


async def start_worker(stack: Any, log: Path, **environment: str) -> Process:
    """A worker process of its own, as `runtime run` starts it."""
    with log.open("ab") as output:
        return await anyio.open_process(
            [sys.executable, "-m", "runtime", "run", str(SLOW)],
            stdout=output,
            stderr=output,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("RUNTIME_")},
                "SUPABASE_URL": stack.api_url,
                "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
                "RUNTIME_LEASE_SECONDS": "2",
                "RUNTIME_SWEEP_SECONDS": "2",
                **environment,
            },
        )


async def test_g3_a_worker_is_killed_in_the_middle_and_the_others_finish(stack: Any, tmp_path: Path) -> None:
    log = tmp_path / "workers.log"
    workers = [await start_worker(stack, log) for _ in range(3)]
    try:
        async with connected(stack.admin_url) as connection:

            async def all_there() -> bool:
                return bool(await connection.fetchval("select count(*) = 3 from runtime.workers"))

            await until(all_there)
            await until(lambda: settled(connection, "slow.work"))
            async with connect(settings_of(stack)) as stream:
                await stream.send_all([Draft("slow.task", number) for number in range(1000)])

            async def some_done() -> bool:
                return bool(await connection.fetchval("select count(*) >= 200 from runtime.runs"))

            await until(some_done)
            workers[0].send_signal(signal.SIGKILL)

            async def none_left() -> bool:
                return not await connection.fetchval("select exists (select from runtime.deliveries)")

            await until(none_left, seconds=60)
            finished = await connection.fetch(
                "select message_id, count(*) filter (where outcome = 'done') as done from runtime.runs group by 1"
            )
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.terminate()
        with anyio.fail_after(60):
            codes = [await worker.wait() for worker in workers]
    assert len(finished) == 1000, log.read_text()[-2000:]
    assert {row["done"] for row in finished} == {1}
    assert codes[1:] == [0, 0]


async def test_g9_sigterm_drains_and_loses_nothing(stack: Any, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    worker = await start_worker(stack, log)
    async with connected(stack.admin_url) as connection:
        await until(lambda: settled(connection, "slow.work"))
        async with connect(settings_of(stack)) as stream:
            await stream.send_all([Draft("slow.task", number) for number in range(300)])

        async def some_done() -> bool:
            return bool(await connection.fetchval("select count(*) >= 20 from runtime.runs"))

        await until(some_done)
        worker.terminate()
        with anyio.fail_after(60):
            assert await worker.wait() == 0, log.read_text()[-2000:]
        rows = await connection.fetchrow(
            "select (select count(*) from runtime.runs where outcome = 'done') as done, "
            "(select count(*) from runtime.deliveries where lease is null and attempts = 0 and crashes = 0) as left, "
            "(select count(*) from runtime.deliveries) as deliveries, (select count(*) from runtime.workers) as workers"
        )
    assert rows is not None
    assert rows["done"] + rows["deliveries"] == 300
    assert rows["left"] == rows["deliveries"]
    assert rows["workers"] == 0
