"""A worker behind what stands in front of an API, or of a database: what its tests share."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from runtime import Agent, Retry
from runtime.client.stream import connect
from runtime.local.faults import FaultyGateway
from runtime.message import Draft
from runtime.settings import Settings
from tests.integration.conftest import connected, running, settings_of, settled, until

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
