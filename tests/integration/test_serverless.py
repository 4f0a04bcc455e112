"""Do agents do what is due, once, where nothing runs between the calls? With real processes, over real HTTP."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from runtime import Agent, Context, RetryLater, Tick, drain
from runtime.errors import DeclarationError, StoreUnavailable
from tests.cli.shell import Shell
from tests.integration.conftest import connected, settings_of, until
from tests.integration.test_webhooks_in import WAKING, serving, signed
from tests.preforked import Preforked

pytestmark = pytest.mark.anyio

TOKEN = {"authorization": f"Bearer {WAKING}"}
SOURCE = """
import anyio
from runtime import Agent, Source

shop = Source("shop", "shop.{event}")
till = Agent("till")

@till.on("shop.order.*", emits="till.booked", start="earliest")
async def book(order: dict) -> int:
    await anyio.sleep(order.get("seconds", 0))
    return order["number"]
"""


def store_of(stack: Any, store: str, **overrides: object) -> Any:
    return settings_of(stack, database_url=stack.db_url if store == "direct" else None, **overrides)


async def write(connection: Any, *values: Any, key: str = "shop.order.paid") -> None:
    await connection.executemany(
        "insert into consciousness_stream (key, value) values ($1, $2)",
        [(key, json.dumps(each)) for each in values],
    )


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_g4_two_servers_drained_at_once_handle_everything_once(
    store: str, stack: Any, tmp_path: Path
) -> None:
    more = {"DATABASE_URL": stack.db_url} if store == "direct" else {}
    async with (
        serving(stack, tmp_path, "--serverless", source=SOURCE, **more) as one,
        serving(stack, tmp_path, "--serverless", source=SOURCE, **more) as other,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(timeout=60, headers=TOKEN) as client,
    ):
        # The sender's webhook is stored though nothing runs.
        for number in range(3):
            webhook = signed(f"msg_{number}", {"type": "order.paid", "number": number})
            assert (await client.post(f"{one.url}/webhooks/shop", **webhook)).status_code == 200
        await write(connection, *({"number": number} for number in range(3, 300)))
        answers: list[dict[str, Any]] = []

        async def call(url: str) -> None:
            while True:
                answer = await client.post(f"{url}/drain")
                assert answer.status_code == 200, answer.text
                answers.append(answer.json())
                if answer.json()["left"] == 0:
                    return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, one.url)
            tasks.start_soon(call, other.url)
        assert sum(answer["handled"] for answer in answers) == 300
        # Once more, when neither holds a lease any more whose end would be due next.
        await call(one.url)
        assert answers[-1] == {"handled": 0, "failed": 0, "left": 0, "next_due_seconds": None}
        rows = await connection.fetch(
            "select value #>> '{}' as n from consciousness_stream where key = 'till.booked'"
        )
        assert sorted(int(row["n"]) for row in rows) == list(range(300))


async def test_who_calls_during_a_drain_is_told_so_and_what_they_wrote_is_handled(
    stack: Any, tmp_path: Path
) -> None:
    async with (
        serving(stack, tmp_path, "--serverless", source=SOURCE) as server,
        connected(stack.db_url) as connection,
        httpx.AsyncClient(base_url=server.url, timeout=60, headers=TOKEN) as client,
    ):
        assert (await client.post("/drain")).json()["handled"] == 0
        await write(connection, {"number": 1, "seconds": 1})
        first: list[httpx.Response] = []

        async def call() -> None:
            first.append(await client.post("/drain"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await until(lambda: _leased(stack))
            for number in range(2, 5):
                await write(connection, {"number": number})
                record = {"id": number, "key": "shop.order.paid"}
                payload = {
                    "type": "INSERT",
                    "schema": "public",
                    "table": "consciousness_stream",
                    "record": record,
                }
                answer = await client.post("/wake", json=payload)
                assert (answer.status_code, answer.json()) == (202, {"joined": True})
        assert first[0].json() == {"handled": 4, "failed": 0, "left": 0, "next_due_seconds": None}
        # Nobody's message wakes nobody.
        payload["record"] = {"id": 99, "key": "till.booked"}
        answer = await client.post("/wake", json=payload)
        assert (answer.status_code, answer.content) == (202, b"")


async def test_only_who_knows_the_secret_has_agents_drain(stack: Any, tmp_path: Path) -> None:
    async with (
        serving(stack, tmp_path, "--serverless", source=SOURCE) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        for headers in ({}, {"authorization": "Bearer guessed"}, {"x-webhook-secret": ""}):
            assert (await client.post("/drain", headers=headers)).status_code == 401
        assert (await client.get("/drain", headers=TOKEN)).status_code == 405


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_g9_what_runs_when_the_budget_ends_is_given_back_without_an_attempt(
    store: str, stack: Any
) -> None:
    agent, began = Agent("slow"), list[int]()

    @agent.on("slow.task", start="earliest", concurrency=1)
    async def never(value: int) -> None:
        began.append(value)
        await anyio.sleep(3600)

    async with connected(stack.db_url) as connection:
        await write(connection, 1, 2, 3, key="slow.task")
        clock = time.monotonic()
        drained = await drain([agent], store_of(stack, store), budget=2)
        # The handler would sleep for an hour.
        assert time.monotonic() - clock < 600
        assert (drained.handled, drained.failed, drained.left, drained.next_due_seconds) == (0, 0, 3, 0)
        assert began == [1]
    async with connected(_admin(stack)) as connection:
        rows = await connection.fetch("select attempts, crashes, lease from runtime.deliveries")
        assert [tuple(row) for row in rows] == [(0, 0, None)] * 3
        assert await connection.fetchval("select count(*) from runtime.workers") == 0


async def test_a_drain_says_when_the_next_one_is_due(stack: Any) -> None:
    agent, seen = Agent("later"), list[Any]()

    @agent.on("later.task", start="earliest")
    async def wait(value: int) -> None:
        seen.append(value)
        raise RetryLater(seconds=600)

    @agent.on("broken.task", start="earliest")
    async def fail(value: int) -> None:
        raise ValueError("no")

    settings = store_of(stack, "direct")
    async with connected(stack.db_url) as connection:
        drained = await drain([agent], settings)
        assert (drained.handled, drained.failed, drained.left, drained.next_due_seconds) == (0, 0, 0, None)
        await write(connection, 1, key="later.task")
        drained = await drain([agent], settings)
        assert (drained.handled, drained.failed, drained.left) == (0, 0, 0)
        assert drained.next_due_seconds is not None
        assert 500 < drained.next_due_seconds <= 600
        await write(connection, 1, key="broken.task")
        assert (await drain([agent], settings)).failed >= 1
        assert seen == [1]


async def test_timers_tick_when_somebody_calls(stack: Any) -> None:
    agent, slots = Agent("clock"), list[Tick]()

    @agent.every("1s", missed="all")
    async def strike(tick: Tick, context: Context) -> None:
        slots.append(tick)

    settings = store_of(stack, "direct")
    first = await drain([agent], settings)
    assert first.next_due_seconds is not None
    assert first.next_due_seconds <= 1
    async with connected(stack.db_url) as connection:
        until_then = "select clock_timestamp() > $1::timestamptz + interval '3 s'"
        now = await connection.fetchval("select clock_timestamp()")

        async def is_past() -> bool:
            return bool(await connection.fetchval(until_then, now))

        await until(is_past)
    drained = await drain([agent], settings)
    assert drained.handled >= 3
    found = [tick.slot.timestamp() for tick in slots]
    assert sorted(found) == [min(found) + number for number in range(len(found))]


async def test_a_drain_waits_for_what_an_agent_sets_up(stack: Any) -> None:
    steps: list[str] = []

    agent = Agent("careful")

    @agent.lifespan
    async def warm_up() -> AsyncIterator[str]:
        await anyio.sleep(0.5)
        yield "warm"
        steps.append("cooled down")

    @agent.on("careful.task", start="earliest")
    async def work(value: int, context: Context) -> None:
        steps.append(context.state)

    async with connected(stack.db_url) as connection:
        await write(connection, 1, key="careful.task")
    assert (await drain([agent], store_of(stack, "direct"))).handled == 1
    assert steps == ["warm", "cooled down"]


@pytest.mark.own_stack
async def test_g1_a_stream_that_is_away_ends_the_call_with_a_word_and_nothing_is_lost(stack: Any) -> None:
    agent = Agent("steady")

    @agent.on("steady.task", start="earliest")
    async def work(value: int) -> None: ...

    async with connected(stack.db_url) as connection:
        await write(connection, 1, key="steady.task")
    await anyio.to_thread.run_sync(stack.stop_gateway)
    with pytest.raises(StoreUnavailable):
        await drain([agent], store_of(stack, "rest"), budget=1)
    await anyio.to_thread.run_sync(stack.start_gateway)
    assert (await drain([agent], store_of(stack, "rest"))).handled == 1


async def test_what_nothing_is_kept_for_cannot_be_drained(stack: Any) -> None:
    agent = Agent("ear")

    @agent.on("said.loud", deliver="each")
    async def hear(value: int) -> None: ...

    with pytest.raises(DeclarationError, match="Run them in a worker"):
        await drain([agent], store_of(stack, "direct"))


def test_runtime_drain_is_a_job_for_a_scheduler(stack: Any, tmp_path: Path, preforked: Preforked) -> None:
    (tmp_path / "till.py").write_text(SOURCE)
    named = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    shell = Shell(tmp_path, named, preforked=preforked)
    assert shell.run("send", "shop.order.paid", '{"number": 1}').code == 0
    ended = shell.run("drain", "till.py", "--json")
    assert (ended.code, json.loads(ended.stdout)) == (
        0,
        {"handled": 1, "failed": 0, "left": 0, "next_due_seconds": None},
    )
    assert shell.run("drain", "till.py").stdout == "0 handled, 0 failed, 0 left; nothing waits\n"


def _admin(stack: Any) -> str:
    return str(stack.admin_url)


async def _leased(stack: Any) -> bool:
    async with connected(_admin(stack)) as connection:
        found = await connection.fetchval(
            "select exists (select from runtime.deliveries where lease is not null)"
        )
    return bool(found)
