"""The exchange: a worker's one round trip, and its wire format."""

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

Outcome = Literal["failed", "dead", "later", "released", "cancelled", "suspended", "undone"]


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
    steps: Sequence[Sequence[Any]] | None

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """Name the parts of a list; a newer schema may say more, at the end."""
        return cls._make(row[: len(cls._fields)])


class Delivery:
    """One message leased for one subscription.

    Args:
        subscription: the subscription's number in this database.
        message: the message, its value decoded but not validated.
        lease: the fence: only the holder of the current lease can finish the delivery.
        crashes: how many worker processes died while handling it.

    Attributes:
        place: identifies the delivery: (message id, subscription).
    """

    __slots__ = ("_message", "_row", "crashes", "lease", "place", "subscription")
    _message: Message[Any] | None
    _row: WireRow | None

    def __init__(self, subscription: int, message: Message[Any], lease: str, crashes: int = 0) -> None:
        self.subscription = subscription
        self.place = (message.id, subscription)
        self.lease = lease
        self.crashes = crashes
        self._message, self._row = message, None

    @classmethod
    def from_wire(cls, row: Sequence[Any]) -> "Delivery":
        """Read one delivery as `runtime.describe` builds it."""
        delivery = cls.__new__(cls)
        read = WireRow.of(row)
        delivery.subscription, delivery.place = read.subscription, (read.id, read.subscription)
        delivery.lease, delivery.crashes = read.lease, read.crashes
        # The message is built in the handler's thread: the pump does not need it, and has no time.
        delivery._message, delivery._row = None, read
        return delivery

    def __repr__(self) -> str:
        return f"<Delivery of message {self.place[0]} to subscription {self.subscription}>"

    @classmethod
    def bare(cls, message: int, subscription: int, lease: str) -> "Delivery":
        """Return a delivery without its message: it can be reported, but not handled."""
        delivery = cls.__new__(cls)
        delivery.subscription, delivery.place, delivery.lease = subscription, (message, subscription), lease
        delivery.crashes, delivery._message, delivery._row = 0, None, None
        return delivery

    @property
    def message(self) -> Message[Any]:
        """The message, built at first use."""
        if self._message is None:
            assert self._row is not None
            try:
                self._message = _message(self._row)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                self._message = _salvaged(self._row, error)
        return self._message

    @property
    def steps(self) -> Mapping[tuple[str, str, int], Any]:
        """The results that earlier attempts have kept, as JSON data by name, key and occurrence."""
        if self._row is None or not self._row.steps:
            return {}
        return {(name, key, occurrence): value for name, key, occurrence, value, *_ in self._row.steps}

    @property
    def is_undoing(self) -> bool:
        """Whether its attempts run the undos of its steps, and its handler no more."""
        return self._row is not None and any(each[0] == "undo" for each in self._row.steps or ())

    @property
    def undos(self) -> dict[tuple[str, str, int], Any]:
        """What undoes the steps that have undos, as JSON data by name, key and occurrence, in the order they ended."""
        if self._row is None or not self._row.steps:
            return {}
        return {(each[0], each[1], each[2]): each[5] for each in self._row.steps if each[5] is not None}


def _message(row: WireRow) -> Message[Any]:
    return Message(
        row.id, row.key, row.value, row.agent, moment(row.created_at), row.attempts + row.crashes + 1,
        row.correlation_id, row.parent_id, row.headers if type(row.headers) is dict else {},
        PRIORITIES[row.priority], row.dedup_key,
        None if row.deliver_at is None else moment(row.deliver_at),
        None if row.expires_at is None else moment(row.expires_at),
    )  # fmt: skip


def _salvaged(row: WireRow, error: Exception) -> Message[Any]:
    """Return a message for a malformed row: enough for a dead letter of its own."""
    attempts = [count for count in (row.attempts, row.crashes) if isinstance(count, int)]
    key = row.key if isinstance(row.key, str) else ""
    why = Unreadable.because(
        f"a row whose columns are not those of a message ({type(error).__name__}: {error})"
    )
    return Message(row.id, key, why, attempt=sum(attempts) + 1)


# Not frozen: a frozen one takes three times as long to make, and there is one for every attempt.
@dataclass(slots=True)
class Report:
    """How one attempt ended.

    Attributes:
        delivery: that was attempted.
        seconds: how long the handler ran.
        outcome: None after success, else what to do with the delivery.
        emits: after success, the drafts as JSON objects.
        reason: one word for a dead letter: failed, rejected, invalid, crashed.
        delay: seconds until the delivery is due again.
        hold: seconds for which a provider puts off every delivery of the subscription.
        usage: what the handler told of the models it used, as `Context.used` holds it.
        waits: the places of the waits that a suspended delivery waits for.
        answer: the answer to it, where the handler's own transaction has carried it already.
    """

    delivery: Delivery
    seconds: float = 0.0
    outcome: Outcome | None = None
    emits: tuple[str, ...] = ()
    reason: str | None = None
    error: str | None = None
    traceback: str | None = None
    delay: float | None = None
    hold: float | None = None
    usage: Mapping[str, Any] | None = None
    waits: Sequence[tuple[str, str, int]] | None = None
    answer: "ExchangeAnswer | None" = None

    def to_wire(self) -> str:
        """Return the report as a JSON object."""
        delivery = self.delivery
        head = (
            f'{{"message":{delivery.place[0]},"subscription":{delivery.subscription},'
            f'"lease":"{delivery.lease}","seconds":{self.seconds:.6f}'
        )
        if self.usage is not None:
            head = f'{head},"usage":{encode(self.usage)}'
        if self.outcome is None:
            return f'{head},"emits":[{",".join(self.emits)}]}}' if self.emits else f"{head}}}"
        details = {
            name: given
            for name in ("outcome", "reason", "error", "traceback", "delay", "hold", "waits")
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
        due: take delayed, retrying and abandoned deliveries too.
        alone: take one delivery that has crashed its worker twice, and no other.
        sleep: the worker goes to sleep if nothing comes.
        stay: the sleeping worker was woken; if nothing comes it asks next whether it may sleep on.
        fence: the answer of the last exchange while falling asleep.
        beat: count this as the worker's heartbeat and sweep.
        nonce: the database sends this text back over every push path.
        settle: bring new subscriptions closer to settled.
        max_bytes: the largest answer; None leaves that to the database.
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
        gauges: with a beat, the state of the worker's process, for `status`.
        bare: return only which deliveries are leased, without their messages.
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
        """Return the arguments of `stream_exchange`; JSON ones as text."""
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
        """Return an exchange of the same number without reports.

        If this exchange was applied before, it counts as a whole; the answer names its leases without their messages.
        """
        return Exchange(
            worker=self.worker, pump=self.pump, n=self.n, want=self.want, lease_seconds=self.lease_seconds, bare=True,
            due=self.due, alone=self.alone,
        )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class ExchangeAnswer:
    """The database's answer to an exchange.

    Attributes:
        refused: reports whose lease was no longer the current one.
        lost: leases that could not be renewed.
        cancelled: deliveries of this worker that an operator cancelled; repeated until they have ended.
        taken: deliveries leased by this exchange.
        leased: deliveries leased by a bare exchange, without their messages.
        filled: subscriptions of which as many were taken as wanted: there may be more.
        next_due: seconds until a delivery is due, if that was asked and there is one.
        limited: seconds until a limit lets more deliveries through, if that is known.
        look_again: a delivery waits behind one that is just ending.
        has_poison: a delivery that has crashed its worker twice waits to be taken alone.
        quiet: every later writer will see that this worker sleeps.
        unsettled: subscriptions that are not settled yet.
        warnings: sentences about faults of the set-up or the declarations, with a heartbeat.
        unheard: the keys of emitted messages that no handler listens to.
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
    unheard: tuple[str, ...] = ()
    unknown: bool = False
    stale: bool = False
    repeated: bool = False

    @classmethod
    def from_wire(cls, answer: Mapping[str, Any]) -> "ExchangeAnswer":
        """Read the answer of `stream_exchange`."""
        more = answer.get("more") or {}
        return cls(
            refused=_places(answer.get("refused")),
            lost=_places(more.get("lost")),
            cancelled=_places(more.get("cancelled")),
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
            unheard=tuple(more.get("unheard") or ()),
            unknown=bool(more.get("unknown")),
            stale=bool(answer.get("stale")),
            repeated=bool(answer.get("repeated")),
        )


def _places(rows: Any) -> frozenset[tuple[int, int]]:
    return frozenset([(message, subscription) for message, subscription in rows]) if rows else frozenset()


def _array(items: Any) -> str | None:
    """Return a JSON array of JSON texts, or None if there are none."""
    joined = ",".join(items)
    return f"[{joined}]" if joined else None
