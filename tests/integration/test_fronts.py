"""A worker behind what stands in front of an API, or of a database: whatever goes wrong is found in one report or one
delivery, which ends with a clear error, and everything else goes on. Nothing runs twice, and no success fails.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from runtime import Agent, Context, Retry
from runtime.local.faults import FaultyGateway
from runtime.message import Draft
from runtime.settings import Settings
from runtime.stream import connect
from tests.faulty_proxy import faulty_proxy
from tests.integration.conftest import connected, outcomes, running, settings_of, settled, until

pytestmark = [pytest.mark.anyio, pytest.mark.own_stack]

EXCHANGES = "stream_exchange"
SLOW = 90.0


def direct_settings(url: str, **overrides: object) -> Settings:
    """Settings of a worker over a direct connection alone."""
    given = {"supabase_url": None, "supabase_key": None, "lease_seconds": 5, "drain_seconds": 5}
    return Settings.load(database_url=url, **{**given, **overrides})


def worker_settings(stack: Any, store: str, **overrides: object) -> Settings:
    """Settings of a worker over either store."""
    if store == "direct":
        return direct_settings(stack.db_url, **overrides)
    return settings_of(stack, **overrides)


def echoing(runs: Counter[int], attempts: int = 1) -> Agent:
    """An agent that writes what it is told to."""
    agent = Agent("front")

    @agent.on("front.task", retry=Retry(attempts=attempts), concurrency=20, emits="front.result")
    async def echo(value: dict[str, Any]) -> dict[str, Any]:
        runs[value["n"]] += 1
        return {"n": value["n"], "text": value.get("text", "") or "x" * value.get("size", 0)}

    return agent


async def send(stack: Any, values: list[dict[str, Any]]) -> None:
    """Send past whatever stands in front."""
    async with connect(direct_settings(stack.db_url)) as stream:
        await stream.send_all([Draft("front.task", value) for value in values])


async def dead(stack: Any) -> dict[int, str]:
    """The errors of dead letters by the number in their message."""
    async with connected(stack.admin_url) as connection:
        rows = await connection.fetch(
            "select message -> 'value' ->> 'n' as n, error from runtime.dead_letters"
        )
    return {int(row["n"]): row["error"] for row in rows}


async def results(stack: Any) -> list[int]:
    """The numbers of what handlers wrote, in order."""
    async with connected(stack.admin_url) as connection:
        rows = await connection.fetch(
            "select (value ->> 'n')::int as n from consciousness_stream where key = 'front.result'"
        )
    return sorted(row["n"] for row in rows)


async def none_left(stack: Any) -> bool:
    async with connected(stack.admin_url) as connection:
        return not await connection.fetchval("select exists (select from runtime.deliveries)")


async def is_ready(stack: Any) -> bool:
    async with connected(stack.admin_url) as connection:
        return await settled(connection, "front.echo")


@asynccontextmanager
async def fronted(stack: Any, agent: Agent, **overrides: object) -> AsyncIterator[FaultyGateway]:
    """A worker over REST, behind a front that lets everything through as yet."""
    async with FaultyGateway(stack.api_url) as front:
        overrides = {"broadcast": False, "postgres_changes": False, "poll_slow_seconds": 0.5, **overrides}
        settings = settings_of(stack, supabase_url=front.url, **overrides)
        async with running([agent], settings, live=False):
            await until(lambda: is_ready(stack))
            yield front


BLOCKS: dict[str, Callable[[FaultyGateway], object]] = {
    "413 by size": lambda it: it.block(413, over_bytes=1_000_000, matching=EXCHANGES),
    **{
        f"{status} by text": lambda it, status=status: it.block(status, holding="DROP TABLE", matching=EXCHANGES)
        for status in (400, 403, 406, 414, 431, 503)
    },
    "403 in JSON": lambda it: it.answer('{"message":"Forbidden"}', 403, holding="DROP TABLE", matching=EXCHANGES),
    "401 in JSON": lambda it: it.answer('{"message":"no"}', 401, holding="DROP TABLE", matching=EXCHANGES),
    "200 and a page": lambda it: it.answer("<html>Rejected</html>", holding="DROP TABLE", matching=EXCHANGES),
    "200 and nothing": lambda it: it.answer("", holding="DROP TABLE", matching=EXCHANGES),
    "204": lambda it: it.answer("", 204, holding="DROP TABLE", matching=EXCHANGES),
}  # fmt: skip


@pytest.mark.timeout(180)
@pytest.mark.parametrize("block", BLOCKS)
async def test_l2_a_body_that_a_front_refuses_costs_its_own_delivery_alone(stack: Any, block: str) -> None:
    runs: Counter[int] = Counter()
    async with fronted(stack, echoing(runs)) as front:
        BLOCKS[block](front)
        values: list[dict[str, Any]] = [{"n": n} for n in range(60)]
        values[17] = {"n": 17, "text": "'; DROP TABLE students" if "size" not in block else "x" * 2_000_000}
        await send(stack, values)
        await until(lambda: none_left(stack), seconds=SLOW)
        await send(stack, [{"n": 100}])
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(dict.fromkeys((*range(60), 100), 1))
    errors = await dead(stack)
    assert list(errors) == [17]
    status = block.split()[0]
    assert status in errors[17] or "answered with" in errors[17] or "refused the key" in errors[17]
    assert await results(stack) == [n for n in (*range(60), 100) if n != 17]


@pytest.mark.timeout(180)
async def test_l2_a_front_that_refuses_even_an_empty_exchange_is_waited_for_and_named(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runs: Counter[int] = Counter()
    async with fronted(stack, echoing(runs)) as front:
        front.block(403, matching=EXCHANGES)
        await send(stack, [{"n": n} for n in range(10)])
        await until(lambda: front.struck["refuse"] >= 5)
        assert "something in front of it, a proxy or a web application firewall" in caplog.text
        front.heal()
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(range(10))
    assert await results(stack) == list(range(10))
    assert await dead(stack) == {}


FOREIGN = ["", "null", "[1, 2]", "7", '{"ok": true}', "<html>"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("body", FOREIGN)
async def test_l3_a_2xx_that_is_not_ours_is_never_taken_for_an_answer(
    stack: Any, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs: Counter[int] = Counter()
    async with fronted(stack, echoing(runs)) as front:
        front.answer(body, matching="rpc/")
        await send(stack, [{"n": n} for n in range(20)])
        await until(lambda: front.struck["answer in its place"] >= 4)
        front.heal()
        await until(lambda: none_left(stack), seconds=SLOW)
        # And in the middle of everything, one after the other.
        front.answer(body, times=2, matching=EXCHANGES)
        front.truncate("requests", times=2, matching=EXCHANGES)
        await send(stack, [{"n": n} for n in range(20, 40)])
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(range(40))
    assert await results(stack) == list(range(40))
    assert "no answer of the runtime's schema" in caplog.text
    assert front.url in caplog.text


@pytest.mark.timeout(180)
async def test_l2_an_answer_that_is_too_large_for_a_front_is_had_in_parts(stack: Any) -> None:
    runs: Counter[int] = Counter()
    async with fronted(stack, echoing(runs)) as front:
        front.limit_answers(100_000, matching=EXCHANGES)
        await send(stack, [{"n": n, "padding": "y" * 30_000} for n in range(30)])
        await send(stack, [{"n": 30, "padding": "y" * 300_000}, {"n": 31}])
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter([*range(30), 31])
    errors = await dead(stack)
    assert list(errors) == [30]
    assert "does not arrive" in errors[30]
    crashed = (await outcomes(stack.admin_url))["front.echo", "crashed"]
    assert crashed == 0


# A slow road


@pytest.mark.timeout(240)
@pytest.mark.parametrize("store", ["rest", "direct"])
async def test_l11_a_slow_road_carries_a_few_at_a_time_and_what_cannot_be_had_is_a_dead_letter(
    stack: Any, store: str
) -> None:
    runs: Counter[int] = Counter()
    values: list[dict[str, Any]] = [{"n": n, "padding": "y" * 60_000} for n in range(40)]
    # So large that it takes ten times as long as a request may.
    values.insert(3, {"n": 40, "padding": "y" * 10_000_000})
    if store == "rest":
        async with fronted(stack, echoing(runs), request_seconds=2) as front:
            front.throttle(500_000)
            await send(stack, values)
            await until(lambda: none_left(stack), seconds=SLOW)
    else:
        port = urlsplit(stack.db_url).port
        assert port is not None
        async with faulty_proxy(port) as proxy:
            url = stack.db_url.replace(f":{port}/", f":{proxy.port}/")
            settings = direct_settings(url, notify=False, request_seconds=2, poll_slow_seconds=0.5)
            async with running([echoing(runs)], settings, live=False):
                await until(lambda: is_ready(stack))
                proxy.bytes_per_second = 500_000
                await send(stack, values)
                await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(range(40))
    errors = await dead(stack)
    assert list(errors) == [40]
    assert "does not arrive" in errors[40]
    assert (await outcomes(stack.admin_url))["front.echo", "crashed"] == 0


# Locks


@pytest.mark.timeout(180)
@pytest.mark.parametrize("store", ["rest", "direct"])
async def test_l1_a_lock_on_the_stream_fails_no_handler_that_succeeded(stack: Any, store: str) -> None:
    runs: Counter[int] = Counter()
    settings = worker_settings(stack, store, lease_seconds=8)
    async with running([echoing(runs)], settings):
        await until(lambda: is_ready(stack))
        async with connected(stack.admin_url) as admin:
            await send(stack, [{"n": n} for n in range(8)])
            async with admin.transaction():
                # As CREATE INDEX takes it: what is there can be read, and nothing be written.
                await admin.execute("lock table consciousness_stream in share mode")
                # Longer than a lease: what waits to be reported is renewed.
                await anyio.sleep(11)
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(range(8))
    assert await dead(stack) == {}
    assert await outcomes(stack.admin_url) == Counter({("front.echo", "done"): 8})
    assert await results(stack) == list(range(8))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("store", ["rest", "direct"])
async def test_l1_a_report_that_waits_for_another_writer_holds_up_no_other_and_never_fails(
    stack: Any, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    runs: Counter[int] = Counter()
    agent = Agent("front")

    @agent.on("front.task", retry=Retry(attempts=1), concurrency=20)
    async def echo(value: dict[str, Any], context: Context) -> None:
        runs[value["n"]] += 1
        context.emit("front.result", {"n": value["n"]}, dedup_key=f"key-{value['n']}")

    async with running([agent], worker_settings(stack, store)):
        await until(lambda: is_ready(stack))
        async with connected(stack.admin_url) as writer, writer.transaction():
            await writer.execute(
                "insert into consciousness_stream (key, value, dedup_key) values ('front.other', '1', 'key-4')"
            )
            await send(stack, [{"n": n} for n in range(20)])
            others = [n for n in range(20) if n != 4]

            async def others_are_done() -> bool:
                return await results(stack) == others

            await until(others_are_done, seconds=SLOW)
            await until(lambda: "waits, and others go on" in caplog.text)
            await send(stack, [{"n": 20}])
            others.append(20)
            await until(others_are_done, seconds=SLOW)
        await until(lambda: none_left(stack), seconds=SLOW)
    assert runs == Counter(range(21))
    assert await dead(stack) == {}
