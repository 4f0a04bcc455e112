"""One history from its first message to the last: everybody at once, then all that is left is drained, then judged."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import uuid4

import anyio
import asyncpg

from tests.chaos.histories.checks import judge
from tests.chaos.histories.clients import (
    SUBSCRIPTIONS,
    Client,
    Killer,
    Operator,
    Sender,
    SqlWriter,
    Worker,
    declared,
)
from tests.chaos.histories.history import History
from tests.chaos.histories.roads import Road, SqlRoad, roads, until_answered
from tests.kernel.driver import advance, connected

_FRUITLESS = 12


@dataclass
class Outcome:
    """What came of one history."""

    seed: int
    problems: list[str]
    messages: int
    runs: int
    counts: dict[str, int] = field(default_factory=dict)


async def play(url: str, gateway: tuple[str, str] | None, seed: int, *, steps: int = 60) -> Outcome:
    """Play one history on a fresh kernel.

    Args:
        url: the database, as the role that owns the schema.
        gateway: URL and key of the REST API over it; without one, the store that needs it is left out.
        seed: of all dice; the database and the scheduler have their own.
        steps: how many of its steps each writer makes; the others make as many as go with that.
    """
    random, history = Random(seed), History()
    async with connected(url) as db, roads(url, gateway, random) as road:
        numbers = await _subscribe(road("direct"))
        operators = [await asyncpg.connect(url) for _ in range(8)]

        async def worker(name: str, operator: Any, version: str) -> Worker:
            made = Worker(history, Random(random.random()), road(name), numbers, operator, version)
            await made.subscribe()
            return made

        workers = [
            await worker(*each)
            for each in zip(("sql", "sql", "direct", "rest"), operators[3:], "1212", strict=False)
        ]
        clients: list[tuple[Client, int]] = [(each, 3 * steps) for each in workers]
        for _ in range(4):
            plain = road("sql")
            assert isinstance(plain, SqlRoad)
            clients.append((SqlWriter(history, Random(random.random()), plain), steps))
        clients += [
            (Sender(history, Random(random.random()), road(name)), steps) for name in ("direct", "rest")
        ]
        clients += [(Operator(history, Random(random.random()), each), 2 * steps) for each in operators[:2]]
        protected = [each.get_server_pid() for each in (db, *operators)]
        clients.append((Killer(history, Random(random.random()), operators[2], protected), steps // 2))
        async with anyio.create_task_group() as tasks:
            for client, count in clients:
                tasks.start_soon(_play_steps, client, count)
        last = [await worker("direct", db, version) for version in "12"]
        last[0].held = [run for each in workers for run in each.held]
        waiting = await _answered(db, last)
        stood_still = await _drain(db, last, Operator(history, random, operators[0]))
        left = await _leftovers(db, last[0])
        for each in operators:
            await each.close()
    left |= {"stood still": stood_still, "waiting": waiting}
    problems = judge(history, left)
    return Outcome(seed, problems, len(history.messages), len(history.runs), dict(history.counts))


async def _play_steps(client: Client, count: int) -> None:
    for _ in range(count):
        await client.step()
        await client.rest()


async def _subscribe(road: Road) -> dict[int, str]:
    """Declare everything, and exchange until it is settled; returns the names by their numbers."""
    card = {"id": str(uuid4()), "name": "history", "announce": [], "details": {}}
    answer = await until_answered(
        road, "stream_subscribe", {"worker": json.dumps(card), "subscriptions": json.dumps(declared())}
    )
    with anyio.fail_after(60):
        for n in range(1, 1_000_000):
            settled = await until_answered(
                road, "stream_exchange",
                {"worker": card["id"], "pump": card["id"], "n": n, "options": '{"settle": true}'},
            )  # fmt: skip
            if not settled["more"]["unsettled"]:
                break
    return {row["id"]: name for name, row in answer["subscriptions"].items()}


async def _answered(db: Any, workers: Sequence[Worker]) -> list[int]:
    """Let every writer's messages end the waits for them, without time's help; returns what waits all the same."""
    for each in SUBSCRIPTIONS:
        await db.fetchval("select stream_resume($1)", each["name"])
    with anyio.fail_after(120):
        while await db.fetchval("select exists (select from runtime.unsettled_waits)"):
            for worker in workers:
                await worker.step(well=True)
    rows = await db.fetch(
        "select w.message_id from runtime.waits w join runtime.deliveries d using (message_id, subscription) "
        "where d.lease is null and d.visible_at > clock_timestamp() + interval '1 minute' and exists ("
        "select from consciousness_stream m where m.key = w.pattern and m.id > w.since_id)"
    )
    return [row["message_id"] for row in rows]


async def _drain(db: Any, workers: Sequence[Worker], operator: Operator) -> list[int]:
    """Take and finish until nothing is left, without a sweep; returns what nobody could take without one."""
    fruitless = 0
    while await db.fetchval("select exists (select from runtime.deliveries)") or await _letters(db):
        for each in SUBSCRIPTIONS:
            await db.fetchval("select stream_resume($1)", each["name"])
        took = False
        for worker in workers:
            took = bool(worker.held) or await worker.step(well=True) > 0 or took
            if worker.held:
                await worker.step(well=True)
        if not took:
            # Let what is delayed or abandoned come due, and dead letters go.
            await advance(db, 700)
            let_go = 0
            while await _letters(db):
                await (operator.discard if operator.random.random() < 0.5 else operator.redrive)()
                let_go += 1
            fruitless = 0 if let_go else fruitless + 1
            if fruitless > _FRUITLESS:
                return await _stuck(db)
        else:
            fruitless = 0
    return []


async def _letters(db: Any) -> bool:
    return bool(await db.fetchval("select exists (select from runtime.dead_letters)"))


async def _stuck(db: Any) -> list[int]:
    rows = await db.fetch("select message_id from runtime.deliveries order by message_id limit 20")
    return [row["message_id"] for row in rows]


async def _leftovers(db: Any, worker: Worker) -> dict[str, Any]:
    """What the database holds in the end, after one sweep."""
    card = {"id": worker.id, "name": "last", "announce": [], "details": {}}
    await db.fetchval("select stream_subscribe($1, $2)", card, declared())
    worker.n += 1
    await db.fetchval(
        "select stream_exchange(worker => $1, pump => $2, n => $3, options => $4)",
        worker.id, worker.pump, worker.n, {"beat": True},
    )  # fmt: skip
    found: dict[str, Any] = await db.fetchval(
        "select jsonb_build_object("
        "'deliveries', (select count(*) from runtime.deliveries), "
        "'leases', (select count(*) from runtime.deliveries where lease is not null), "
        "'unmarked', (select count(*) from runtime.unmarked), "
        "'dead_letters', (select count(*) from runtime.dead_letters), "
        "'expired', (select sum(expired) from runtime.subscriptions))"
    )
    rows = await db.fetch("select id, processed from consciousness_stream")
    return {**found, "processed": {row["id"]: row["processed"] for row in rows}}
