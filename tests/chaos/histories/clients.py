"""The clients of a history: writers, workers, operators, and one who kills their connections."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import uuid4

import anyio
import asyncpg

from runtime.store.exchange import WireRow
from tests.chaos.histories.history import History, Prune, Run
from tests.chaos.histories.long_work import LongWork, steps_of
from tests.chaos.histories.roads import AWAY, ISOLATIONS, Road, SqlRoad, until_answered

KEYS = ("lane.k0", "lane.k0", "lane.k1", "lane.k2", "free.x")
SUBSCRIPTIONS: tuple[dict[str, Any], ...] = (
    {"name": "orderly.exact", "patterns": ["lane.k0", "lane.k1"], "ordered": True, "max_attempts": 3},
    {"name": "orderly.blocking", "patterns": ["lane.*"], "ordered": True, "dead_blocks": True, "max_attempts": 2},
    {"name": "orderly.limited", "patterns": ["lane.*"], "ordered": True, "concurrency_total": 2,
     "rate_amount": 1000, "rate_seconds": 1.0},
    {"name": "wide.all", "patterns": [">"], "max_attempts": 3, "max_crashes": 2},
    {"name": "wide.limited", "patterns": ["lane.k0", "free.x"], "concurrency_total": 3},
)  # fmt: skip
PINNED = "wide.all"
LEASE_SECONDS = 600.0


def declared(version: str | None = None) -> list[dict[str, Any]]:
    """The subscriptions as `stream_subscribe` takes them; one of them is pinned where there is a version."""
    pin = {} if version is None else {"version": version, "pin": True}
    return [
        {**each, "agent": each["name"].partition(".")[0], **(pin if each["name"] == PINNED else {})}
        for each in SUBSCRIPTIONS
    ]


@dataclass
class Client(ABC):
    """Somebody with a history to write down and dice of their own."""

    history: History
    random: Random

    @abstractmethod
    async def step(self) -> object:
        """Do one thing."""

    async def rest(self, seconds: float = 0.004) -> None:
        """Let others go on."""
        await anyio.sleep(self.random.random() * seconds)


@dataclass
class SqlWriter(Client):
    """Inserts in transactions of every isolation level, with savepoints, and gives some of them up."""

    road: SqlRoad

    async def step(self) -> None:
        """One transaction."""
        began, ids = self.history.tick(), dict[int, str]()
        isolation, gives_up = self.random.choice(ISOLATIONS), self.random.random() < 0.15
        try:
            connection = await self.road.connection()
            transaction = connection.transaction(isolation=isolation.replace(" ", "_"))
            await transaction.start()
            for _ in range(self.random.choice((1, 1, 2, 5))):
                ids |= await self._insert(connection)
                await self.rest(0.02)
            if gives_up:
                await transaction.rollback()
                self.history.counts["given up"] += 1
                return
        except (*AWAY, asyncpg.SerializationError):
            # What had not come to its commit is rolled back with its connection.
            await self._drop()
            return
        try:
            await transaction.commit()
        except asyncpg.SerializationError:
            await self._drop()
        except AWAY:
            self.history.uncertain |= ids.keys()
            await self._drop()
        else:
            self.history.committed(ids, began)
            self.history.counts[isolation] += 1

    async def _insert(self, connection: Any) -> dict[int, str]:
        key = self.random.choice(KEYS)
        savepoint = connection.transaction() if self.random.random() < 0.3 else None
        if savepoint is not None:
            await savepoint.start()
        expires = "clock_timestamp() + interval '10 ms'" if self.random.random() < 0.03 else "null"
        id_ = await connection.fetchval(
            f"insert into consciousness_stream (key, value, expires_at) values ($1, '1', {expires}) returning id",
            key,
        )
        if savepoint is not None and self.random.random() < 0.5:
            await savepoint.rollback()
            self.history.counts["savepoints rolled back"] += 1
            return {}
        if savepoint is not None:
            await savepoint.commit()
        return {id_: key}

    async def _drop(self) -> None:
        self.history.counts["writers cut off"] += 1
        await self.road.close()


@dataclass
class Sender(Client):
    """Sends batches over a store, again under the same dedup_keys where no answer came."""

    road: Road

    async def step(self) -> None:
        """One batch."""
        began = self.history.tick()
        batch = [
            {"key": self.random.choice(KEYS), "value": 1, "dedup_key": str(uuid4())}
            for _ in range(self.random.choice((1, 3)))
        ]
        rows = await until_answered(self.road, "stream_send", {"messages": json.dumps(batch)})
        ids = [row["id"] for row in rows]
        self.history.committed(dict(zip(ids, [each["key"] for each in batch], strict=True)), began)


@dataclass
class Worker(Client):
    """Takes, holds for a moment, reports; freezes now and then, and reports too late."""

    road: Road
    numbers: dict[int, str]
    operator: Any
    version: str
    id: str = field(default_factory=lambda: str(uuid4()))
    pump: str = field(default_factory=lambda: str(uuid4()))
    n: int = 0
    held: list[Run] = field(default_factory=list)
    late: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._number = {name: number for number, name in self.numbers.items()}
        self._long = LongWork(self.history, self.random, self.road, self._number, PINNED)

    async def subscribe(self) -> None:
        """Say what it runs, and of which version."""
        card = {"id": self.id, "name": "worker", "announce": [], "details": {}}
        await until_answered(
            self.road, "stream_subscribe",
            {"worker": json.dumps(card), "subscriptions": json.dumps(declared(self.version))},
        )  # fmt: skip

    async def step(self, *, well: bool = False) -> int:
        """One exchange: reports some of what it holds, and takes; returns how many it took."""
        for run in () if well else tuple(self.held):
            await self._long.go_on(run)
        reports = [run for run in self.held if well or self.random.random() < 0.7]
        done, failed = list[dict[str, Any]](), list[dict[str, Any]]()
        for run in reports:
            self.held.remove(run)
            outcome = self._outcome(run, well=well)
            if outcome == "crash":
                await self._freeze(run)
                continue
            run.ended, run.outcome = self.history.tick(), outcome
            self._file(run, outcome, done, failed)
        spoken = [run for run in reports if run.outcome != "crash"]
        # An exchange names a delivery once.
        if (
            self.late
            and self.late[-1].place not in {run.place for run in reports}
            and self.random.random() < 0.3
        ):
            run = self.late.pop()
            self._file(run, "done", done, failed)
            spoken.append(run)
        answer = await self._exchange(done, failed, room=20 if well else self.random.choice((1, 3, 8)))
        refused = {(message, self.numbers[number]) for message, number in answer["refused"]}
        for run in spoken:
            was_done = run.outcome == "done" or run.outcome == "crash"
            if run.place in refused:
                self.history.counts["refused"] += 1
                self.history.note(run.place, f"refused {run.outcome}")
                run.outcome = "refused"
            elif was_done:
                self.history.end(run.place, f"done, after {run.outcome}")
                self.history.counts["done"] += 1
            else:
                self.history.note(run.place, str(run.outcome))
        self.held += [
            self.history.began(
                (row.id, self.numbers[row.subscription]), row.key, row.lease, self.version, *steps_of(row)
            )
            for row in map(WireRow.of, answer["taken"])
        ]
        return len(answer["taken"])

    def _outcome(self, run: Run, *, well: bool) -> str:
        good = "suspended" if run.waits else "undone" if run.is_undoing else "done"
        return (
            good
            if well
            else self.random.choices(
                (good, "failed", "later", "released", "dead", "crash"), (75, 6, 3, 6, 5, 5)
            )[0]
        )

    def _file(self, run: Run, outcome: str, done: list[dict[str, Any]], failed: list[dict[str, Any]]) -> None:
        report = {
            "message": run.place[0],
            "subscription": self._number[run.place[1]],
            "lease": run.lease,
            "seconds": 0.0,
        }
        if outcome == "done":
            done.append(report)
        else:
            more = {"waits": run.waits} if outcome == "suspended" else {}
            delay = 0 if more else self.random.choice((0, 0, 0.02))
            failed.append({**report, "outcome": outcome, "delay": delay, "error": "no", **more})

    async def _freeze(self, run: Run) -> None:
        """Its process is gone or frozen, and its lease runs out."""
        run.ended, run.outcome = self.history.tick(), "crash"
        self.history.counts["leases run out"] += 1
        self.history.note(run.place, "lease runs out")
        await self.operator.execute(
            "update runtime.deliveries set visible_at = clock_timestamp() where message_id = $1 and subscription = $2 "
            "and lease = $3::text::uuid and visible_at < 'infinity'",
            run.place[0], self._number[run.place[1]], run.lease,
        )  # fmt: skip
        if self.random.random() < 0.5:
            self.late.append(run)

    async def _exchange(
        self, done: list[dict[str, Any]], failed: list[dict[str, Any]], *, room: int
    ) -> dict[str, Any]:
        self.n += 1
        options = {
            "lease_seconds": LEASE_SECONDS,
            "due": self.random.random() < 0.8,
            "alone": not self.held and self.random.random() < 0.3,
        }
        arguments: dict[str, Any] = {"worker": self.id, "pump": self.pump, "n": self.n}
        if done:
            arguments["done"] = json.dumps(done)
        if failed:
            arguments["failed"] = json.dumps(failed)
        arguments["want"] = json.dumps({str(number): room for number in self.numbers})
        arguments["options"] = json.dumps(options)
        answer: dict[str, Any] = await until_answered(self.road, "stream_exchange", arguments)
        assert not answer.get("stale"), "a pump was overtaken by itself"
        self.history.counts["asked again"] += bool(answer.get("repeated"))
        return answer


@dataclass
class Operator(Client):
    """Pauses, resumes, replays, redrives, discards, cancels and prunes."""

    connection: Any

    async def step(self) -> None:
        """One operation."""
        verb = self.random.choice(
            ("pause", "resume", "resume", "replay", "redrive", "discard", "cancel", "prune")
        )
        try:
            await getattr(self, verb)()
        except (asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError):
            self.history.counts[f"{verb} gave way"] += 1
        else:
            self.history.counts[verb] += 1

    async def _ask(self, statement: str, *arguments: Any) -> Any:
        async with self.connection.transaction():
            answer = await self.connection.fetchval(f"select public.{statement}", *arguments)
            # The others go on beside what is not committed yet.
            await self.rest(0.02)
        return json.loads(answer)

    def _any_subscription(self) -> str:
        return str(self.random.choice(SUBSCRIPTIONS)["name"])

    def _any_message(self) -> int | None:
        return self.random.choice(list(self.history.messages)) if self.history.messages else None

    async def pause(self) -> None:
        """Stop one subscription for a while."""
        await self._ask("stream_pause($1)", self._any_subscription())

    async def resume(self) -> None:
        """Let one go on."""
        await self._ask("stream_resume($1)", self._any_subscription())

    async def replay(self) -> None:
        """Have one message delivered again."""
        message, name = self._any_message(), self._any_subscription()
        if message is not None:
            place = (message, name)
            self.history.revivals[place].append(self.history.tick())
            self.history.restarted.add(place)
            answer = await self._ask("stream_replay($1, ids => $2)", name, [message])
            if answer["replayed"]:
                self.history.note(place, "replayed")
                self.history.replays[place] += 1
                self.history.fuzzy.add(place)

    async def letter(self) -> tuple[int, tuple[int, str]] | None:
        """One dead letter there is."""
        letters = await self._ask("stream_dead(max => 20)")
        if not letters:
            return None
        for each in letters:
            self.history.buried((each["message_id"], each["subscription"]), each["error"])
        chosen = self.random.choice(letters)
        return chosen["id"], (chosen["message_id"], chosen["subscription"])

    async def redrive(self) -> None:
        """Deliver one dead letter again."""
        if found := await self.letter():
            letter, place = found
            at = self.history.tick()
            self.history.revivals[place].append(at)
            self.history.releases[place].append(at)
            answer = await self._ask("stream_redrive($1)", [letter])
            self.history.note(place, f"redriven {answer['redriven']}")

    async def discard(self) -> None:
        """Let one dead letter go."""
        if found := await self.letter():
            letter, place = found
            self.history.releases[place].append(self.history.tick())
            answer = await self._ask("stream_discard($1)", [letter])
            if answer["discarded"]:
                self.history.end(place, "discarded")

    async def cancel(self) -> None:
        """End one message, for one subscription or for all."""
        message = self._any_message()
        if message is None:
            return
        name = self.random.choice((None, self._any_subscription()))
        outcome = self.random.choice(("dead", "done"))
        answer = await self._ask("stream_cancel($1, $2, $3)", message, name, outcome)
        for each in answer["deliveries"]:
            place = (message, each["subscription"])
            self.history.note(place, f"cancelled as {outcome}: {each['state']}")
            if each["state"] == "ended" and outcome == "done":
                self.history.end(place, "cancelled")
            elif each["state"] == "told":
                self.history.fuzzy.add(place)

    async def prune(self) -> None:
        """Remove a few messages that are a moment old."""
        after = self._any_message()
        if after is not None:
            began = self.history.tick()
            answer = await self._ask("stream_prune(0.3, $1, $2)", self.random.choice((1, 3)), after - 1)
            if answer["last"] is not None:
                ids = range(after, answer["last"] + 1)
                self.history.prunes.append(Prune(ids, began, self.history.tick()))


@dataclass
class Killer(Client):
    """Ends the connections of writers, workers and the gateway."""

    connection: Any
    protected: list[int]

    async def step(self) -> None:
        """One connection, drawn by lot."""
        killed = await self.connection.fetchval(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
            "and usename = current_user and not pid = any ($1) and state is distinct from 'idle' "
            "order by random() limit 1",
            self.protected,
        )
        self.history.counts["connections killed"] += bool(killed)
