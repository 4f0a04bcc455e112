"""Where do messages live? The port to the database: one call per SQL function, whatever carries it."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypeVar
from uuid import UUID

import anyio

from runtime.backoff import backoff_seconds
from runtime.encoding.json import encode
from runtime.errors import MigrationMissing, StoreError, StoreUnavailable
from runtime.message import Draft, Message
from runtime.store.exchange import Delivery, Exchange, ExchangeAnswer, Look, Outcome, Report
from runtime.store.functions import ONCE
from runtime.store.sqlstates import MIGRATION_CURE, ROLLED_BACK, UPGRADE_CURE, foreign

__all__ = [
    "Delivery",
    "Exchange",
    "ExchangeAnswer",
    "Look",
    "Outcome",
    "Report",
    "Sent",
    "Store",
    "Subscribed",
    "Subscription",
    "WorkerCard",
]  # fmt: skip

T = TypeVar("T")

SCHEMA_VERSION = 1
"""The schema this release is made for; the database tells its own by `stream_version`."""

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one sent message: its id, or the id of the one that was there before."""

    id: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a worker declares of one handler, as the database keeps it."""

    name: str
    agent: str
    patterns: tuple[str, ...]
    ordered: bool = False
    dead_blocks: bool = False
    start: Literal["latest", "earliest"] = "latest"
    max_attempts: int = 5
    max_crashes: int = 5
    # Served if it is there, and not made where it is not.
    must_exist: bool = False
    rate_amount: int | None = None
    rate_seconds: float | None = None
    concurrency_total: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The declaration as `stream_subscribe` takes it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """Who a worker is: an id drawn at its start, a name for people, and how it can be reached."""

    id: UUID
    name: str
    announce: tuple[Literal["realtime", "notify"], ...] = ()
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """What the database answered: the number of each subscription, which are not settled yet, and what is wrong."""

    numbers: Mapping[str, int]
    unsettled: frozenset[int]
    warnings: tuple[str, ...] = ()


class Store(ABC):
    """The port. An implementation carries `call`; everything else is the same for all of them."""

    _random = Random()

    @property
    @abstractmethod
    def place(self) -> str:
        """Where this store is, for people: a host and port, never a secret."""

    @abstractmethod
    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Call one SQL function once and return its JSON, decoded.

        Args:
            function: a name in `runtime.store.functions.FUNCTIONS`.
            arguments: by name; those of type json and jsonb as text. None is left to the default.

        Raises:
            StoreUnavailable: not reached, or no answer in time.
            Unauthorized: the key or role may not do this.
            MigrationMissing: the function is not there.
            Refused: the database said no.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give back every connection. A closed store is not used again."""

    async def answers(self, seconds: float) -> bool:
        """Whether the database answers in time: asked once, without patience."""
        with anyio.move_on_after(seconds):
            try:
                await self.call("stream_version", {})
            except StoreError:
                return False
            return True
        return False

    async def send(self, drafts: Sequence[Draft]) -> list[Sent]:
        """Store messages in their order, in one transaction.

        Raises:
            StoreUnavailable: its `maybe_applied` says whether they may have been stored all the same. Where every
                one has a dedup_key, sending them again is harmless.
            StoreError: they were not stored.
        """
        if not drafts:
            return []
        messages = f"[{','.join(draft.json for draft in drafts)}]"
        repeatable = all(draft.dedup_key is not None for draft in drafts)
        rows = await self._persist("stream_send", {"messages": messages}, repeatable=repeatable)
        if len(rows) != len(drafts):
            raise foreign(f"{len(rows)} ids for {len(drafts)} messages", place=self.place, cure="")
        return [Sent(row["id"], row["duplicate"]) for row in rows]

    async def write(self, messages: Sequence[str]) -> None:
        """Store messages given as the JSON of drafts, in one transaction and at most once.

        Raises:
            StoreError: they may not have been stored; where no answer came they may have been.
        """
        await self._persist("stream_send", {"messages": f"[{','.join(messages)}]"}, repeatable=False)

    async def read(
        self,
        pattern: str,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 100,
        latest: bool = False,
    ) -> list[Message[Any]]:
        """Return messages by pattern: the oldest after an id, else the newest; `latest`, one per key."""
        rows = await self._persist(
            "stream_read",
            {"pattern": pattern, "after": after, "before": before, "max": limit, "latest": latest},
            repeatable=True,
        )
        return [Message[Any].from_row(row) for row in rows]

    async def check_schema(self) -> str:
        """Make sure that the database has a schema this release can work with.

        Returns:
            The database's incarnation: another one than before means that it was reset.

        Raises:
            MigrationMissing: it has none, an older one, or a newer one that has left this release behind.
        """
        found = await self._persist("stream_version", {}, repeatable=True)
        if found["version"] < SCHEMA_VERSION:
            raise MigrationMissing(
                f"The schema at {self.place} is of version {found['version']}, and this release needs "
                f"{SCHEMA_VERSION}. {MIGRATION_CURE}"
            )
        if found["serves"] > SCHEMA_VERSION:
            raise MigrationMissing(
                f"The schema at {self.place} is newer than this release: it serves workers of version "
                f"{found['serves']} and later, and this one is of {SCHEMA_VERSION}. {UPGRADE_CURE}"
            )
        return str(found["incarnation"])

    async def subscribe(self, worker: WorkerCard, subscriptions: Sequence[Subscription]) -> Subscribed:
        """Record the worker and its subscriptions."""
        card = {
            "id": worker.id, "name": worker.name, "announce": worker.announce, "details": worker.details or {},
        }  # fmt: skip
        answer = await self._persist(
            "stream_subscribe",
            {"worker": encode(card), "subscriptions": encode([each.as_dict() for each in subscriptions])},
            repeatable=True,
        )
        found = answer["subscriptions"]
        return Subscribed(
            numbers={name: row["id"] for name, row in found.items()},
            unsettled=frozenset(row["id"] for row in found.values() if not row["settled"]),
            warnings=tuple(answer.get("warnings") or ()),
        )

    async def exchange(self, exchange: Exchange) -> ExchangeAnswer:
        """Report and take in one transaction. Not repeated here: the pump repeats it under the same number."""
        given = {name: value for name, value in exchange.arguments().items() if value is not None}
        # But for a lost race, which is run again at once.
        answer = await persist(
            lambda: self.call("stream_exchange", given), repeatable=None, random=self._random
        )
        return ExchangeAnswer.from_wire(answer)

    async def operate(self, function: str, **arguments: Any) -> Any:
        """Call one of the operations, such as `stream_stats`, and return its answer."""
        # A replay whose answer was lost may have been handled already: a second one would do it all again. A nonce
        # is booked once, a secret drawn once.
        repeatable = function not in ONCE
        return await self._persist(function, arguments, repeatable=repeatable)

    async def _persist(self, function: str, arguments: Mapping[str, Any], *, repeatable: bool) -> Any:
        """Call, and call again after what leaves no trace: a lost race, and for repeatable calls a lost answer."""
        given = {name: value for name, value in arguments.items() if value is not None}
        return await persist(lambda: self.call(function, given), repeatable=repeatable, random=self._random)


async def persist(call: Callable[[], Awaitable[T]], *, repeatable: bool | None, random: Random) -> T:
    """Await the call, again with backoff and full jitter where that is safe.

    Args:
        call: makes one try.
        repeatable: whether a try whose answer was lost may be made again. None: nor may one that came to nothing,
            since the caller repeats it by itself.
        random: where the jitter comes from.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await call()
        except StoreError as error:
            rolled_back = error.code in ROLLED_BACK
            is_away = isinstance(error, StoreUnavailable) and (repeatable or not error.maybe_applied)
            lost = is_away and repeatable is not None
            if attempt == _ATTEMPTS or not (rolled_back or lost):
                raise
        cap = 0.2 if rolled_back else 2.0
        await anyio.sleep(
            backoff_seconds(attempt, first=0.05 if rolled_back else 0.2, cap=cap, random=random)
        )
    raise AssertionError("unreachable")
