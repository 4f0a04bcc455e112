"""What crosses the wire in a worker's one round trip?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self
from uuid import UUID

from runtime.encoding.json import encode
from runtime.encoding.unreadable import Unreadable
from runtime.message import PRIORITIES, Message, moment

_OPTIONS = (
    "due", "alone", "sleep", "stay", "fence", "beat", "gauges", "nonce", "settle", "max_bytes", "bare",
)  # fmt: skip

Outcome = Literal["failed", "dead", "later", "released", "cancelled"]


class WireRow(NamedTuple):
    """A delivery with its message as it crosses the wire: a list in this order, which `runtime.describe` builds.

    Not an object by names, which takes 200 bytes more of each message and twice as long to decode (3.5 µs, not 1.8 µs).
    """

    subscription: int
    attempts: int
    crashes: int
    id: int
    key: str
    value: Any
    agent: str | None
    created_at: str
    correlation_id: str | None
    parent_id: int | None
    headers: Any
    priority: int
    dedup_key: str | None
    deliver_at: str | None
    expires_at: str | None
    lease: str

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Name the parts of a list; a newer schema may say more, at the end."""
        return cls._make(row[: len(cls._fields)])


class Delivery:
    """One message leased for one subscription.

    Args:
        subscription: the subscription's number in this database.
        message: the message, its value decoded but not validated.
        lease: the right to finish it.
        crashes: how many workers have died on it.

    Attributes:
        place: what names a delivery: (message id, subscription).
    """

    __slots__ = ("_message", "_row", "crashes", "lease", "place", "subscription")
    _message: Message[Any] | None
    _row: WireRow

    def __init__(self, subscription: int, message: Message[Any], lease: str, crashes: int = 0) -> None:
        self.subscription = subscription
        self.place = (message.id, subscription)
        self.lease = lease
        self.crashes = crashes
        self._message = message

    @classmethod
    def from_wire(cls, row: Sequence[Any]) -> "Delivery":
        """Read one delivery as `runtime.describe` builds it."""
        delivery = cls.__new__(cls)
        read = WireRow.of(row)
        delivery.subscription, delivery.place = read.subscription, (read.id, read.subscription)
        delivery.lease, delivery.crashes = read.lease, read.crashes
        # The message is made where its handler runs: the pump has no need of it, and no time.
        delivery._message, delivery._row = None, read
        return delivery

    def __repr__(self) -> str:
        return f"<Delivery of message {self.place[0]} to subscription {self.subscription}>"

    @classmethod
    def bare(cls, message: int, subscription: int, lease: str) -> "Delivery":
        """A delivery whose message is not known here: it can be reported, and not be handled."""
        delivery = cls.__new__(cls)
        delivery.subscription, delivery.place, delivery.lease = subscription, (message, subscription), lease
        delivery.crashes, delivery._message = 0, None
        return delivery

    @property
    def message(self) -> Message[Any]:
        """The message."""
        if self._message is None:
            try:
                self._message = _message(self._row)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                self._message = _salvaged(self._row, error)
        return self._message


def _message(row: WireRow) -> Message[Any]:
    return Message(
        row.id, row.key, row.value, row.agent, moment(row.created_at), row.attempts + row.crashes + 1,
        row.correlation_id, row.parent_id, row.headers if type(row.headers) is dict else {},
        PRIORITIES[row.priority], row.dedup_key,
        None if row.deliver_at is None else moment(row.deliver_at),
        None if row.expires_at is None else moment(row.expires_at),
    )  # fmt: skip


def _salvaged(row: WireRow, error: Exception) -> Message[Any]:
    """What is left of a row that is no message: enough to say so in a dead letter of its own."""
    attempts = [count for count in (row.attempts, row.crashes) if isinstance(count, int)]
    key = row.key if isinstance(row.key, str) else ""
    why = Unreadable.because(
        f"a row whose columns are not those of a message ({type(error).__name__}: {error})"
    )
    return Message(row.id, key, why, attempt=sum(attempts) + 1)


# Not frozen: one is made for every attempt, and that would take three times as long.
@dataclass(slots=True)
class Report:
    """How one attempt ended.

    Attributes:
        delivery: whose attempt it was.
        seconds: how long the handler ran.
        outcome: None when it is done, else what to do with the delivery.
        emits: for a finished one, the drafts as JSON objects.
        reason: one word for a dead letter: failed, rejected, invalid, crashed.
        delay: seconds until it is due again.
    """

    delivery: Delivery
    seconds: float = 0.0
    outcome: Outcome | None = None
    emits: tuple[str, ...] = ()
    reason: str | None = None
    error: str | None = None
    traceback: str | None = None
    delay: float | None = None

    def to_wire(self) -> str:
        """The report as a JSON object."""
        delivery = self.delivery
        head = (
            f'{{"message":{delivery.place[0]},"subscription":{delivery.subscription},'
            f'"lease":"{delivery.lease}","seconds":{self.seconds:.6f}'
        )
        if self.outcome is None:
            return f'{head},"emits":[{",".join(self.emits)}]}}' if self.emits else f"{head}}}"
        details = {
            name: given
            for name in ("outcome", "reason", "error", "traceback", "delay")
            if (given := getattr(self, name)) is not None
        }
        return f"{head},{encode(details)[1:]}"


# Not frozen either: one of each of the next three is made for every round trip.
@dataclass(slots=True, kw_only=True)
class Look:
    """What a pump has to report, and how it looks for work.

    Attributes:
        done, failed: how attempts ended.
        renew: the deliveries whose leases go on.
        want: how many deliveries to take, by subscription.
        cursors: where to go on among fresh deliveries; None starts from the lowest id.
        due: look at delayed, retrying and abandoned deliveries too.
        alone: take one delivery that has crashed its worker twice, and nothing else.
        sleep: this worker goes to sleep when nothing comes.
        stay: it sleeps and was woken; whether it may sleep on is asked next, if nothing comes.
        fence: what the last exchange said while falling asleep.
        beat: count this as the worker's heartbeat and sweep.
        nonce: have the database send this text back over every push path.
        settle: bring new subscriptions closer to settled.
        max_bytes: how large the answer may be; None leaves that to the database.
    """

    done: Sequence[Report] = ()
    failed: Sequence[Report] = ()
    renew: Sequence[Delivery] = ()
    want: Mapping[int, int] = field(default_factory=dict)
    cursors: Mapping[str, int] | None = None
    due: bool = False
    alone: bool = False
    sleep: bool = False
    stay: bool = False
    fence: str | None = None
    beat: bool = False
    nonce: str | None = None
    settle: bool = False
    max_bytes: int | None = None

    @classmethod
    def of(cls, reports: Sequence[Report], **fields: Any) -> "Look":
        """Return the look that carries some reports."""
        return cls(
            done=[report for report in reports if report.outcome is None],
            failed=[report for report in reports if report.outcome is not None],
            **fields,
        )

    @property
    def reports(self) -> list[Report]:
        """Everything it reports."""
        return [*self.done, *self.failed]


@dataclass(slots=True, kw_only=True)
class Exchange(Look):
    """A look as it goes over the wire in one round trip; `n` makes a repeated one harmless.

    Attributes:
        gauges: with a beat, how the worker's process is, for `status`.
        bare: tell only which deliveries are leased, without their messages.
    """

    worker: UUID
    pump: UUID
    n: int
    lease_seconds: float = 30.0
    gauges: Mapping[str, Any] | None = None
    bare: bool = False

    @classmethod
    def carrying(cls, look: Look, **fields: Any) -> "Exchange":
        """Return the exchange that carries this look, with the fields that a look lacks."""
        return cls(**{name: getattr(look, name) for name in Look.__slots__}, **fields)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `stream_exchange`; JSON ones as text."""
        options: dict[str, Any] = {"lease_seconds": self.lease_seconds}
        if self.cursors:
            options["cursors"] = self.cursors
        for name in _OPTIONS:
            if given := getattr(self, name):
                options[name] = given
        return {
            "worker": str(self.worker),
            "pump": str(self.pump),
            "n": self.n,
            "done": _array(report.to_wire() for report in self.done),
            "failed": _array(report.to_wire() for report in self.failed),
            "renew": _array(
                f'{{"message":{each.place[0]},"subscription":{each.subscription},"lease":"{each.lease}"}}'
                for each in self.renew
            ),
            "want": encode({str(subscription): count for subscription, count in self.want.items()}),
            "options": encode(options),
        }

    def emptied(self) -> "Exchange":
        """The same number with nothing in it.

        Where the exchange was applied before, all of it counts, and what it has leased is told without its messages.
        """
        return Exchange(
            worker=self.worker, pump=self.pump, n=self.n, want=self.want, lease_seconds=self.lease_seconds, bare=True,
            due=self.due, alone=self.alone,
        )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class ExchangeAnswer:
    """What the database said.

    Attributes:
        refused: reports whose lease was no longer the current one.
        lost: leases that could not be renewed.
        cancelled: what this worker holds and an operator wants ended; told until it has ended.
        taken: deliveries leased by this exchange.
        leased: deliveries that a bare exchange tells of without their messages.
        filled: subscriptions of which as many were taken as wanted: there may be more.
        next_due: seconds until something is due, if that was asked and there is anything.
        limited: seconds until more may be taken of what waits behind a limit, where that is known.
        look_again: something stands behind a delivery that is just ending.
        has_poison: a delivery that has crashed its worker twice waits to be taken alone.
        quiet: nobody can still write without seeing that this worker sleeps.
        unsettled: subscriptions that are not settled yet.
        warnings: sentences about what is wrong with the set-up or the declarations, with a heartbeat.
        unknown: the database does not know this worker: subscribe again.
        stale: a later exchange of this pump was answered already.
        repeated: this number was answered before; nothing was applied again.
    """

    refused: frozenset[tuple[int, int]] = frozenset()
    lost: frozenset[tuple[int, int]] = frozenset()
    cancelled: frozenset[tuple[int, int]] = frozenset()
    taken: tuple[Delivery, ...] = ()
    leased: tuple[Delivery, ...] = ()
    filled: frozenset[int] = frozenset()
    cursors: Mapping[str, int] = field(default_factory=dict)
    next_due: float | None = None
    limited: float | None = None
    look_again: bool = False
    has_poison: bool = False
    quiet: bool = False
    fence: str | None = None
    unsettled: frozenset[int] = frozenset()
    warnings: tuple[str, ...] = ()
    unknown: bool = False
    stale: bool = False
    repeated: bool = False

    @classmethod
    def from_wire(cls, answer: Mapping[str, Any]) -> "ExchangeAnswer":
        """Read what `stream_exchange` returns."""
        more = answer.get("more") or {}
        return cls(
            refused=frozenset(
                (message, subscription) for message, subscription in answer.get("refused") or ()
            ),
            lost=frozenset((message, subscription) for message, subscription in more.get("lost") or ()),
            cancelled=frozenset(
                (message, subscription) for message, subscription in more.get("cancelled") or ()
            ),
            taken=tuple([Delivery.from_wire(row) for row in answer.get("taken") or ()]),
            leased=tuple([Delivery.bare(*row) for row in answer.get("leased") or more.get("leased") or ()]),
            filled=frozenset(more.get("full") or ()),
            cursors=more.get("cursors") or {},
            next_due=more.get("next_due"),
            limited=more.get("limited"),
            look_again=bool(more.get("look_again")),
            has_poison=bool(more.get("poison")),
            quiet=bool(more.get("quiet")),
            fence=more.get("fence"),
            unsettled=frozenset(more.get("unsettled") or ()),
            warnings=tuple(more.get("warnings") or ()),
            unknown=bool(more.get("unknown")),
            stale=bool(answer.get("stale")),
            repeated=bool(answer.get("repeated")),
        )


def _array(items: Any) -> str | None:
    """A JSON array of JSON texts, or None when there are none."""
    joined = ",".join(items)
    return f"[{joined}]" if joined else None
