"""What does a crowd of readers cost? The same number of deliveries, from one message each to a hundred of one."""

import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from tests.bench.contestants.ours import KEY
from tests.bench.machine import Foreign, quiet
from tests.bench.measures import Scale
from tests.bench.measures.drain import drained
from tests.bench.payload import payload_json
from tests.bench.sample import Sample
from tests.bench.server import Database, Server, Shape

_CROWDS = (1, 10, 100)
_CHAINED = 3
_ROUNDS = 10


async def fan_out(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Deliveries handled a second, when each message has one reader, ten and a hundred."""
    for crowd in _CROWDS:
        shape = Shape(queued=max(1, scale.messages // crowd), handlers=crowd)
        yield await drained(server, scale, name, shape, f"fan-out/1 to {crowd}")


async def chain(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """Handlers run a second, where each of three emits what the next one gets."""
    shape = Shape(queued=scale.messages // _CHAINED, agents="chain")
    deliveries = shape.queued * _CHAINED
    yield await drained(server, scale, name, shape, "chain of 3/handlers run", deliveries=deliveries)


async def wildcards(server: Server, scale: Scale, name: str) -> AsyncIterator[Sample]:
    """The time of an insert beside 1,000 subscriptions, 100 of them wildcards, of which one matches."""
    few = await server.fresh(name, Shape())
    many = await server.copied(few, "many")
    async with server.connected(many) as connection:
        await connection.execute(_SUBSCRIBE)
        await connection.execute("analyze")
    for batch, count in ((1, scale.messages // 40), (100, scale.messages // 2_000)):
        await quiet(scale.quiet_seconds)
        foreign = Foreign(lambda: server.pids)
        spent = {"1": 0.0, "1,000": 0.0}
        for _ in range(_ROUNDS):
            for label, database in (("1", few), ("1,000", many)):
                spent[label] += await _insert(database, batch, max(1, count // _ROUNDS))
        inserts = max(1, count // _ROUNDS) * _ROUNDS
        for label, seconds in spent.items():
            figure = f"insert of {batch}/{label} subscription{'s' * (label != '1')}"
            yield Sample(figure, name, seconds / inserts * 1e3, "ms", foreign.cores())


async def _insert(database: Database, batch: int, count: int) -> float:
    """Seconds that so many inserts took, by a plain connection."""
    connection: Any = await asyncpg.connect(database.url)
    try:
        statement = await connection.prepare(
            "insert into consciousness_stream (key, value) select $1, v from unnest($2::jsonb[]) v"
        )
        values = [payload_json(number) for number in range(batch)]
        for _ in range(10):
            await statement.fetch(KEY, values)
        began = time.perf_counter()
        for _ in range(count):
            await statement.fetch(KEY, values)
        return time.perf_counter() - began
    finally:
        await connection.close()


_SUBSCRIBE = """
select public.stream_subscribe(
    '{"id": "00000000-0000-0000-0000-00000000beef", "name": "crowd"}',
    (select jsonb_agg(jsonb_build_object(
        'name', 'crowd.handler-' || n, 'agent', 'crowd',
        'patterns', jsonb_build_array(case
            when n <= 34 then 'crowd.' || n || '.*'
            when n <= 67 then '*.crowd.' || n
            when n <= 100 then 'crowd.' || n || '.>'
            else 'crowd.key.' || n end)))
     from generate_series(1, 999) n))
"""
