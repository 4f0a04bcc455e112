"""The store: the port to the database, with one call per SQL function over any transport."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any, Literal, TypeVar
from uuid import UUID

import anyio

from runtime.backoff import backoff_seconds
from runtime.encoding.json import decode, encode
from runtime.errors import MigrationMissing, StoreError, StoreUnavailable
from runtime.message import Draft, Message
from runtime.store.arguments import check_number, checked
from runtime.store.exchange import Delivery, Exchange, ExchangeAnswer, Look, Outcome, Report
from runtime.store.functions import ONCE
from runtime.store.sqlstates import MIGRATION_CURE, ROLLED_BACK, UPGRADE_CURE, foreign

__all__ = [
    "Delivery", "Exchange", "ExchangeAnswer", "Look", "Outcome", "Report", "Sent", "Store", "Subscribed",
    "Subscription", "WorkerCard",
]  # fmt: skip

T = TypeVar("T")

SCHEMA_VERSION = 1
"""The schema this release is made for; the database tells its own by `stream_version`."""

_ATTEMPTS = 5
_MAX_ID = 2**63 - 2


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of sending a message.

    Attributes:
        id: its number; that of the earlier message with its dedup_key, if there is one.
        duplicate: whether there is such an earlier message: nothing was stored.
        unheard: no handler listened to its key: it is stored, and no agent gets it.
    """

    id: int
    duplicate: bool = False
    unheard: bool = False


@dataclass(frozen=True, slots=True)
class Subscription:
    """The declaration of a handler as the database keeps it."""

    name: str
    agent: str
    patterns: tuple[str, ...]
    ordered: bool = False
    dead_blocks: bool = False
    start: Literal["latest", "earliest"] = "latest"
    max_attempts: int = 5
    max_crashes: int = 5
    # Serve it if it exists, but do not create it.
    must_exist: bool = False
    rate_amount: int | None = None
    rate_seconds: float | None = None
    concurrency_total: int | None = None
    # In US dollars, as decimal text, in each "hour", "day" or "month".
    budget: str | None = None
    budget_period: str | None = None
    budget_per: int | None = None
    version: str | None = None
    # Only workers of this version go on with what it has begun.
    pin: bool = False
    # What it offers language models, for servers that do not have its code.
    tool: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the declaration as `stream_subscribe` takes it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """A worker's record: an id drawn at its start, a name for people, and its wake-up paths."""

    id: UUID
    name: str
    announce: tuple[Literal["realtime", "notify"], ...] = ()
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The answer to `subscribe`.

    Attributes:
        numbers: the number of each subscription, by its name.
        unsettled: those that are not settled yet.
        warnings: sentences about faults of the set-up or the declarations.
        missed: by the name of each new subscription, how many of the last 5,000 messages match and are not delivered.
    """

    numbers: Mapping[str, int]
    unsettled: frozenset[int]
    warnings: tuple[str, ...] = ()
    missed: Mapping[str, int] = field(default_factory=dict)


class Store(ABC):
    """The port. An implementation carries `call`; everything else is the same for all."""

    _random = Random()

    @property
    @abstractmethod
    def place(self) -> str:
        """The store's address for people: a host and port, never a secret."""

    @abstractmethod
    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Call one SQL function once and return its JSON, decoded.

        Args:
            function: a name in `runtime.store.functions.FUNCTIONS`.
            arguments: by name; those of type json and jsonb as text. None stands for the default.

        Raises:
            StoreUnavailable: not reached, or no answer in time.
            Unauthorized: the key or role may not do this.
            MigrationMissing: the function does not exist.
            Refused: the database refused the request.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close every connection. A closed store is not used again."""

    async def answers(self, seconds: float) -> bool:
        """Whether the database answers one request in time; it is not repeated."""
        with anyio.move_on_after(seconds):
            try:
                await self.call("stream_version", {})
            except StoreError:
                return False
            return True
        return False

    async def send(self, drafts: Sequence[Draft], *, require_listener: bool = False) -> list[Sent]:
        """Store messages in their order, in one transaction.

        Args:
            drafts: the messages.
            require_listener: store none of them if no handler listens to the key of one.

        Raises:
            NobodyListens: no handler listens to a key, and one is required.
            StoreUnavailable: its `maybe_applied` tells whether they may have been stored. If each has a dedup_key,
                sending them again is harmless.
            StoreError: they were not stored.
        """
        if not drafts:
            return []
        messages = f"[{','.join(draft.json for draft in drafts)}]"
        repeatable = all(draft.dedup_key is not None for draft in drafts)
        arguments = {"messages": messages, "require_listener": require_listener or None}
        rows = await self._persist("stream_send", arguments, repeatable=repeatable)
        if len(rows) != len(drafts):
            raise foreign(f"{len(rows)} ids for {len(drafts)} messages", place=self.place, cure="")
        return [Sent(row["id"], row["duplicate"], row.get("unheard", False)) for row in rows]

    async def write(self, messages: Sequence[str]) -> list[str]:
        """Store messages given as the JSON of drafts, in one transaction and at most once.

        Returns:
            The keys among theirs that no handler listens to.

        Raises:
            StoreError: they were not stored, or no answer tells whether they were.
        """
        rows = await self._persist("stream_send", {"messages": f"[{','.join(messages)}]"}, repeatable=False)
        unheard = [text for text, row in zip(messages, rows, strict=False) if row.get("unheard")]
        return [decode(text)["key"] for text in unheard]

    async def read(
        self,
        pattern: str,
        *,
        after: int | None = None,
        before: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        correlation_id: str | None = None,
        limit: int = 100,
        latest: bool = False,
    ) -> list[Message[Any]]:
        """Return messages by pattern: the oldest after an id or since a time, else the newest.

        With `latest`, the newest of each key. A time without a zone is local.

        Raises:
            InvalidKey: `pattern` is no pattern.
            InvalidValue: another argument is of another type, or out of its range.
        """
        rows = await self.operate(
            "stream_read", pattern=pattern, after=after, before=before, max=limit, latest=latest, since=since,
            until=until, correlation_id=correlation_id,
        )  # fmt: skip
        return [Message[Any].from_row(row) for row in rows]

    async def get(self, message: int) -> Message[Any] | None:
        """Return the message with this id, or None if there is none.

        Raises:
            InvalidValue: `message` is no whole number.
        """
        number = check_number("message", message)
        if not 0 < number <= _MAX_ID:
            return None
        found = await self.read(">", after=number - 1, before=number + 1, limit=1)
        return found[0] if found else None

    async def check_schema(self) -> str:
        """Check that the database has a schema this release can work with.

        Returns:
            The database's incarnation: a different one means that the database was reset.

        Raises:
            MigrationMissing: it has none, an older one, or a newer one that does not serve this release.
        """
        found = await self._persist("stream_version", {}, repeatable=True)
        if found["version"] < SCHEMA_VERSION:
            raise MigrationMissing(
                f"The schema at {self.place} has version {found['version']}, and this release needs "
                f"{SCHEMA_VERSION}. {MIGRATION_CURE}"
            )
        if found["serves"] > SCHEMA_VERSION:
            raise MigrationMissing(
                f"The schema at {self.place} is newer than this release: it serves workers of version "
                f"{found['serves']} and later, and this one has {SCHEMA_VERSION}. {UPGRADE_CURE}"
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
            missed={name: row["missed"] for name, row in found.items() if row.get("missed")},
        )

    async def exchange(self, exchange: Exchange) -> ExchangeAnswer:
        """Report and take in one transaction. Not repeated here: the pump repeats it with the same number."""
        given = {name: value for name, value in exchange.arguments().items() if value is not None}
        # Except after a lost race, which is run again at once.
        answer = await persist(
            lambda: self.call("stream_exchange", given), repeatable=None, random=self._random
        )
        return ExchangeAnswer.from_wire(answer)

    async def operate(self, function: str, **arguments: Any) -> Any:
        """Call one of the operations, such as `stream_stats`, and return its answer.

        Raises:
            InvalidKey: a pattern among the arguments is none.
            InvalidValue: an argument is of another type, or out of its range: nothing was requested.
        """
        return await self._persist(function, checked(function, arguments), repeatable=function not in ONCE)

    async def _persist(self, function: str, arguments: Mapping[str, Any], *, repeatable: bool) -> Any:
        """Call, and call again after a lost race or, for repeatable calls, a lost answer."""
        given = {name: value for name, value in arguments.items() if value is not None}
        return await persist(lambda: self.call(function, given), repeatable=repeatable, random=self._random)


async def persist(call: Callable[[], Awaitable[T]], *, repeatable: bool | None, random: Random) -> T:
    """Await the call, again with backoff and full jitter where that is safe.

    Args:
        call: makes one try.
        repeatable: whether a call whose answer was lost may be made again. None: only one that lost a race is, since
            the caller repeats the others itself.
        random: source of the jitter.
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
