"""A worker behind a way that breaks: no message is lost, and none is done twice, whatever the fault."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest

import supabase
from runtime import Agent
from runtime.local.faults import FaultyGateway
from tests.integration.conftest import connected, outcomes, running, settings_of, settled, until
from tests.wakeups.phoenix_server import IS_RECENT

pytestmark = pytest.mark.anyio

EXCHANGES = "stream_exchange"

WAKE_UP_FAULTS: dict[str, Callable[[FaultyGateway], object]] = {
    "rows dropped": lambda faults: faults.drop("rows"),
    "broadcasts dropped": lambda faults: faults.drop("broadcasts"),
    "broadcasts doubled": lambda faults: faults.double("broadcasts"),
    "broadcasts delayed": lambda faults: faults.delay("broadcasts", 0.5, times=10),
    "broadcasts truncated": lambda faults: faults.truncate("broadcasts", times=10),
    "forged": lambda faults: faults.inject('[null,null,"realtime:x","broadcast",{"event":"forged"}]'),
    "deaf": lambda faults: faults.go_deaf("rows", "broadcasts"),
    "rate passed": lambda faults: faults.limit_rate(0.1, window_seconds=10),
    "sockets frozen": lambda faults: faults.freeze("sockets"),
    "sockets refused": lambda faults: faults.refuse("sockets", 503, times=3),
    "accepted, then closed": lambda faults: faults.hang_up(1011, times=3),
    "closed": lambda faults: faults.close(1012),
    "reset": lambda faults: faults.reset(),
}
EXCHANGE_FAULTS: dict[str, Callable[[FaultyGateway], object]] = {
    "exchanges refused": lambda faults: faults.refuse("requests", 503, times=3, matching=EXCHANGES),
    "exchanges cut off": lambda faults: faults.drop("requests", times=3, matching=EXCHANGES),
    "exchanges delayed": lambda faults: faults.delay("requests", 0.3, times=5, matching=EXCHANGES),
    "exchanges doubled": lambda faults: faults.double("requests", times=5, matching=EXCHANGES),
    "answers lost": lambda faults: faults.lose_answer(times=3, matching=EXCHANGES),
    "answers truncated": lambda faults: faults.truncate("requests", times=3, matching=EXCHANGES),
}


FAULTS = WAKE_UP_FAULTS | EXCHANGE_FAULTS


@asynccontextmanager
async def a_client(url: str, key: str) -> AsyncIterator[Any]:
    """A supabase client of the user's own, quicker to connect again than by default."""
    if not IS_RECENT:
        pytest.skip("the realtime package is older than 2.34")
    client = await supabase.create_async_client(url, key)
    client.realtime.initial_backoff = 0.05
    yield client
    await client.realtime.close()


@pytest.mark.parametrize(
    ("fault", "is_over_a_client"),
    [
        *(pytest.param(fault, False, id=fault) for fault in FAULTS),
        *(pytest.param(fault, True, id=f"{fault}, over a client of the user's") for fault in WAKE_UP_FAULTS),
    ],
)
async def test_g1_g3_every_message_is_done_once_in_spite_of(
    stack: Any, fault: str, is_over_a_client: bool
) -> None:
    seen: Counter[int] = Counter()
    agent = Agent("steady")

    @agent.on("steady.task", emits="steady.done")
    async def note(value: int) -> int:
        seen[value] += 1
        return value

    sent = 0

    async def send(connection: Any, count: int) -> None:
        nonlocal sent
        for _ in range(count):
            await connection.execute(
                "insert into consciousness_stream (key, value) values ('steady.task', to_jsonb($1::int))",
                sent,
            )
            sent += 1

    async with FaultyGateway(stack.api_url) as faults:
        settings = settings_of(
            stack, nonce_seconds=1, nonce_deadline_seconds=1, sweep_seconds=2, poll_slow_seconds=0.2
        )
        settings = settings.model_copy(update={"supabase_url": faults.url})
        async with (
            a_client(faults.url, stack.service_role_key) if is_over_a_client else nullcontext() as client,
            running([agent], settings, client=client) as worker,
            connected(stack.db_url) as connection,
        ):
            await until(lambda: settled(connection, "steady.note"))
            if client is not None:
                assert [each.topic for each in client.get_channels()] == [f"realtime:runtime:{worker.id}"]
            struck = FAULTS[fault](faults)
            if struck is not None:
                await struck  # type: ignore[misc]
            if fault in ("sockets refused", "accepted, then closed"):
                await faults.close(1012)
            for _ in range(5):
                await send(connection, 4)
                await until(lambda: len(seen) == sent)
            # Broadcasts may have done everything before the first row comes, up to half a second after its commit.
            await until(lambda: sum(faults.struck.values()) > 0)
            faults.heal()
            await send(connection, 4)
            await until(lambda: len(seen) == sent)
            await until(lambda: worker.state == "live")
        done = await outcomes(stack.admin_url)
        assert done["steady.note", "done"] == sent, done
        async with connected(stack.db_url) as connection:
            results = await connection.fetch(
                "select value from consciousness_stream where key = 'steady.done'"
            )
    assert sorted(int(row["value"]) for row in results) == list(range(sent))
