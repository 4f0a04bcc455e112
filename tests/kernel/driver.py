"""How does a test speak to the kernel? The public functions as any language would call them, over plain connections."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg

from runtime.store.exchange import WireRow

Connection = asyncpg.Connection  # type: ignore[type-arg]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A connection of its own, with JSON decoded."""
    connection = await asyncpg.connect(url)
    try:
        for kind in ("json", "jsonb"):
            await connection.set_type_codec(kind, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        yield connection
    finally:
        await connection.close()


class Taken(WireRow):
    """One delivery as an exchange handed it out."""

    def report(self, **more: Any) -> dict[str, Any]:
        """What names this delivery in done, failed and renew."""
        return {"message": self.id, "subscription": self.subscription, "lease": self.lease, **more}


@dataclass(frozen=True)
class Answer:
    """What an exchange answered."""

    raw: dict[str, Any]

    @property
    def taken(self) -> list[Taken]:
        """In the order they came."""
        return [Taken.of(row) for row in self.raw.get("taken") or ()]

    @property
    def ids(self) -> list[int]:
        """The ids of the messages taken."""
        return [each.id for each in self.taken]

    @property
    def refused(self) -> set[tuple[int, int]]:
        """Reports whose lease was not the current one: (message, subscription)."""
        return {(message, subscription) for message, subscription in self.raw.get("refused") or ()}

    @property
    def more(self) -> dict[str, Any]:
        """Everything else."""
        return self.raw.get("more") or {}


@dataclass
class Worker:
    """A worker of a test: it holds no state but its numbers, so every wrong or repeated call can be made."""

    connection: Any
    id: UUID = field(default_factory=uuid4)
    pump: UUID = field(default_factory=uuid4)
    n: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    async def subscribe(
        self, *subscriptions: str | Mapping[str, Any], announce: Sequence[str] = (), settle: bool = True
    ) -> dict[str, int]:
        """Subscribe: each is `agent.handler=pattern,pattern`, or the full declaration. Settles unless told not to."""
        declared = [self._declaration(each) for each in subscriptions]
        answer = await self.connection.fetchval(
            "select public.stream_subscribe($1, $2)",
            {"id": str(self.id), "name": f"worker-{self.id.hex[:6]}", "announce": list(announce)},
            declared,
        )
        self.numbers = {name: row["id"] for name, row in answer["subscriptions"].items()}
        if settle:
            await self.settle()
        return self.numbers

    async def settle(self) -> None:
        """Exchange until everything is settled, including its history."""
        with anyio.fail_after(60):
            while (await self.exchange(settle=True)).more["unsettled"]:
                pass

    async def exchange(
        self,
        *,
        done: Sequence[Mapping[str, Any]] | None = None,
        failed: Sequence[Mapping[str, Any]] | None = None,
        renew: Sequence[Mapping[str, Any]] | None = None,
        want: Mapping[str | int, int] | int | None = None,
        n: int | None = None,
        pump: UUID | None = None,
        lease: float = 30.0,
        **options: Any,
    ) -> Answer:
        """One exchange. `want` by subscription name or number, or the same of each; `n` goes up by itself."""
        if n is None:
            self.n += 1
            n = self.n
        if isinstance(want, int):
            want = dict.fromkeys(self.numbers, want)
        wanted = None if want is None else {str(self.numbers.get(k, k)): v for k, v in want.items()}  # type: ignore[call-overload]
        answer = await self.connection.fetchval(
            "select public.stream_exchange(worker => $1, pump => $2, n => $3, done => $4, failed => $5, renew => $6, "
            "want => $7, options => $8)",
            self.id, pump or self.pump, n, done, failed, renew, wanted, {"lease_seconds": lease, **options},
        )  # fmt: skip
        return Answer(answer)

    async def take(self, count: int = 100, **options: Any) -> list[Taken]:
        """Take so many of each subscription, looking everywhere as a sweep does."""
        return (await self.exchange(want=count, **{"due": True, **options})).taken

    @property
    def channel(self) -> str:
        """The NOTIFY channel it is woken on."""
        return f"runtime_{str(self.id).replace('-', '_')}"

    @property
    def topic(self) -> str:
        """The topic it is woken on over Realtime."""
        return f"runtime:{self.id}"

    async def fall_asleep(self, want: Mapping[str | int, int] | int = 1) -> None:
        """Go to sleep step by step, until nobody can write unseen; fail if there is work, or at the deadline."""
        fence, is_quiet = None, False
        with anyio.fail_after(60):
            while not is_quiet:
                nap = await self.exchange(want=want, due=True, sleep=True, fence=fence)
                assert nap.taken == []
                fence, is_quiet = nap.more["fence"], nap.more["quiet"]

    async def finish(
        self, *taken: Taken, emits: Sequence[Mapping[str, Any]] | None = None, **more: Any
    ) -> Answer:
        """Report them done."""
        more |= {} if emits is None else {"emits": list(emits)}
        return await self.exchange(done=[each.report(seconds=0.01, **more) for each in taken])

    async def fail(self, *taken: Taken, **report: Any) -> Answer:
        """Report them failed, by default to be tried again at once; outcome: failed, dead, later, released."""
        given = {"outcome": "failed", "delay": 0, "error": "ValueError: no", "traceback": "…", **report}
        return await self.exchange(failed=[each.report(seconds=0.01, **given) for each in taken])

    @staticmethod
    def _declaration(given: str | Mapping[str, Any]) -> Mapping[str, Any]:
        if isinstance(given, str):
            name, _, patterns = given.partition("=")
            given = {"name": name, "patterns": patterns.split(",")}
        return {"agent": given["name"].partition(".")[0], **given}


async def send(connection: Any, *messages: tuple[str, Any] | Mapping[str, Any]) -> list[int]:
    """Send messages by `stream_send`; returns their ids."""
    drafts = [dict(m) if isinstance(m, Mapping) else {"key": m[0], "value": m[1]} for m in messages]
    rows = await connection.fetchval("select public.stream_send($1)", drafts)
    return [row["id"] for row in rows]


async def insert(connection: Any, key: str, value: Any = None, **columns: Any) -> int:
    """Insert one row by plain SQL, as the seed's writers do; returns its id."""
    given = {"key": key, "value": value, **columns}
    places = ", ".join(f"${place}" for place in range(1, len(given) + 1))
    statement = f"insert into consciousness_stream ({', '.join(given)}) values ({places}) returning id"
    return int(await connection.fetchval(statement, *given.values()))


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 120) -> None:
    """Return when the condition holds; fail at the deadline."""
    with anyio.fail_after(seconds):
        while not await condition():
            await anyio.sleep(0.02)


async def advance(connection: Any, seconds: float) -> None:
    """Let so much time pass: the times in the rows move into the past, since the kernel has no second clock."""
    await connection.execute(
        "update runtime.deliveries set visible_at = visible_at - make_interval(secs => $1) "
        "where visible_at < 'infinity'", seconds,
    )  # fmt: skip
    await connection.execute(
        "update consciousness_stream set created_at = created_at - make_interval(secs => $1), "
        "deliver_at = deliver_at - make_interval(secs => $1), expires_at = expires_at - make_interval(secs => $1)",
        seconds,
    )
    for column in ("runtime.dedup set forget_at = forget_at", "runtime.calls set called_at = called_at"):
        await connection.execute(f"update {column} - make_interval(secs => $1)", seconds)
