"""A lock that others hold fails no handler that succeeded, and one report that waits holds up no other."""

import logging
from collections import Counter
from typing import Any

import anyio
import pytest

from runtime import Agent, Context, Retry
from tests.integration.conftest import connected, outcomes, running, until
from tests.integration.fronts import (
    SLOW,
    dead,
    echoing,
    is_ready,
    none_left,
    results,
    send,
    worker_settings,
)

pytestmark = [pytest.mark.anyio, pytest.mark.own_stack]


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
