"""A kernel small enough to be read: what a plan needs of the database, in one process and with a clock of its own."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

from runtime.message import Message
from runtime.settings import Settings
from runtime.store import Delivery, ExchangeAnswer, Look, Report
from runtime.wakeups import Path, Reachability
from runtime.worker.lanes import Lane
from runtime.worker.plan import Plan, Wait
from runtime.worker.poison import PoisonMessages
from runtime.worker.sleep import Phase

EXCHANGE_SECONDS = 0.001
CALL_SECONDS = 0.05


@dataclass
class Row:
    """One delivery as the table has it."""

    message: int
    subscription: int
    visible_at: float | None = None
    lease: str | None = None
    crashes: int = 0


@dataclass
class Writer:
    """A transaction that has inserted and not yet committed."""

    xid: int
    rows: list[Row]
    announces: bool
    # The last exchange that it saw.
    n: int


@dataclass
class Kernel:
    """The table, the worker's mark, and the transactions under way."""

    now: float = 1000.0
    rows: dict[tuple[int, int], Row] = field(default_factory=dict)
    writers: list[Writer] = field(default_factory=list)
    unsettled: set[int] = field(default_factory=set)
    asleep: bool = False
    free: frozenset[int] = frozenset()
    # The number of the last exchange, and the calls that were made after some: when, by its number.
    n: int = 0
    calls: dict[int, float] = field(default_factory=dict)
    finished: Counter[tuple[int, int]] = field(default_factory=Counter)
    # Limited subscriptions: the seconds between two of a rate, and when the next may be taken.
    seconds_between: dict[int, float] = field(default_factory=dict)
    next_at: dict[int, float] = field(default_factory=dict)
    _ids: Any = field(default_factory=lambda: itertools.count(1))
    _xids: Any = field(default_factory=lambda: itertools.count(100))

    def insert(self, *subscriptions: int, delay: float | None = None) -> Writer:
        """Insert a message for some subscriptions in a transaction of its own, not yet committed."""
        message = next(self._ids)
        due = None if delay is None else self.now + delay
        rows = [Row(message, each, due) for each in subscriptions]
        is_called = self.now - self.calls.get(self.n, -math.inf) < CALL_SECONDS
        announces = self.asleep and not self.free.isdisjoint(subscriptions) and not is_called
        writer = Writer(next(self._xids), rows, announces, self.n)
        self.writers.append(writer)
        return writer

    def commit(self, writer: Writer) -> bool:
        """Commit it; returns whether it announced."""
        self.writers.remove(writer)
        self.rows.update({(row.message, row.subscription): row for row in writer.rows})
        if writer.announces:
            self.calls[writer.n] = self.now
        return writer.announces

    def takeable(self, subscription: int) -> list[Row]:
        """What could be taken for a subscription now, the lowest id first."""
        if subscription in self.unsettled:
            return []
        rows = [row for row in self.rows.values() if row.subscription == subscription]
        return sorted(
            (row for row in rows if row.visible_at is None or row.visible_at <= self.now),
            key=lambda row: row.message,
        )

    def exchange(self, look: Look, lease_seconds: float) -> ExchangeAnswer:
        """ExchangeAnswer one exchange by the rules of the kernel."""
        refused = {report.delivery.place for report in (*look.done, *look.failed) if not self._end(report)}
        lost = {delivery.place for delivery in look.renew if not self._renew(delivery, lease_seconds)}
        if look.settle:
            self.unsettled.clear() if not self.writers else None
        fence, quiet = self._lie_down(look)
        self.n += 1
        taken, filled, cursors = self._take(look, lease_seconds)
        waiting = [
            row for row in self.rows.values() if row.subscription in look.want and row.visible_at is not None
        ]
        return ExchangeAnswer(
            refused=frozenset(refused),
            lost=frozenset(lost),
            taken=tuple(taken),
            filled=frozenset(filled),
            cursors=cursors,
            next_due=min((r.visible_at - self.now for r in waiting if r.visible_at > self.now), default=None)  # type: ignore[operator]
            if look.due
            else None,
            limited=min((self.next_at[each] - self.now for each in look.want if self._is_held(each)), default=None),
            has_poison=look.due
            and any(r.lease is None and r.crashes >= 2 and r.visible_at <= self.now for r in waiting),  # type: ignore[operator]
            quiet=quiet,
            fence=fence,
            unsettled=frozenset(self.unsettled),
        )  # fmt: skip

    def _end(self, report: Report) -> bool:
        row = self.rows.get(report.delivery.place)
        if row is None or row.lease != report.delivery.lease:
            return False
        if report.outcome in (None, "dead"):
            del self.rows[report.delivery.place]
            self.finished[report.delivery.place] += 1
        else:
            row.lease, row.visible_at = None, self.now + (report.delay or 0)
        return True

    def _renew(self, delivery: Delivery, lease_seconds: float) -> bool:
        row = self.rows.get(delivery.place)
        if row is None or row.lease != delivery.lease:
            return False
        row.visible_at = self.now + lease_seconds
        return True

    def _lie_down(self, look: Look) -> tuple[str | None, bool]:
        if not look.sleep:
            self.asleep = False
            return None, False
        if look.stay:
            return None, False
        free = frozenset(look.want)
        if not self.asleep or self.free != free:
            self.asleep, self.free = True, free
            return None, False
        if self.n in self.calls:
            return None, False
        fence = int(look.fence) if look.fence and self.n - 1 not in self.calls else next(self._xids)
        return str(fence), all(writer.xid >= fence for writer in self.writers)

    def _take(self, look: Look, lease_seconds: float) -> tuple[list[Delivery], set[int], dict[str, int]]:
        lease, taken, filled = str(next(self._xids)), [], set()
        cursors = dict(look.cursors or {})
        for subscription, wanted in look.want.items():
            count, amount = 0, wanted
            if subscription in self.seconds_between:
                amount = min(wanted, int(self.now >= self.next_at.get(subscription, self.now)))
            for row in self.takeable(subscription):
                is_due = row.visible_at is not None
                if is_due and row.lease is not None and look.due:
                    row.lease, row.crashes = None, row.crashes + 1
                past = cursors.get(str(subscription), 0)
                if (
                    count == amount
                    or (look.alone and taken)
                    or (is_due and (not look.due or (row.crashes >= 2) != look.alone))
                    or (not is_due and (look.alone or row.message <= past))
                ):
                    continue
                if not is_due:
                    cursors[str(subscription)] = row.message
                row.lease, row.visible_at = lease, self.now + lease_seconds
                taken.append(_delivery(row))
                count += 1
            if count and subscription in self.seconds_between:
                self.next_at[subscription] = self.now + self.seconds_between[subscription]
            if count == wanted:
                filled.add(subscription)
        return taken, filled, cursors

    def _is_held(self, subscription: int) -> bool:
        """Whether something waits that a rate does not let through yet."""
        return self.next_at.get(subscription, self.now) > self.now and bool(self.takeable(subscription))


def _delivery(row: Row) -> Delivery:
    message: Message[Any] = Message(
        id=row.message, key="a.b", value=None, agent=None, created_at=datetime(2026, 1, 1, tzinfo=UTC), attempt=1
    )  # fmt: skip
    return Delivery(row.subscription, message, str(row.lease), row.crashes)


class Simulation:
    """A plan against a kernel, driven as the dispatcher drives it: never past the rest that the plan asked for.

    Attributes:
        running: deliveries taken and not yet finished.
        looks: every exchange, with the moment it was made.
    """

    def __init__(
        self,
        limits: dict[int, int],
        *,
        paths: tuple[Path, ...] = ("broadcast",),
        poison_messages: PoisonMessages = PoisonMessages.ALSO,
        **settings: Any,
    ) -> None:
        self.settings = Settings.load(**settings)
        self.kernel = Kernel()
        self.plan = Plan(
            self.settings,
            {number: Lane(limit) for number, limit in limits.items()},
            Reachability(frozenset(paths)),
            now=self.kernel.now,
            poison_messages=poison_messages,
            random=Random(0),
        )
        self.running: dict[str, Delivery] = {}
        self.looks: list[tuple[float, Look]] = []
        self.renewed_at: dict[str, float] = {}
        self.reported: Counter[str] = Counter()
        self.lapses = False
        # How long an exchange takes, and what happens while it is under way.
        self.exchange_seconds = EXCHANGE_SECONDS
        self.meanwhile: Callable[[], None] = lambda: None

    @property
    def now(self) -> float:
        """The moment, in simulated seconds."""
        return self.kernel.now

    def write(self, *subscriptions: int, delay: float | None = None) -> None:
        """A message, committed at once, announced as the kernel would."""
        self.commit(self.kernel.insert(*subscriptions, delay=delay))

    def commit(self, writer: Writer) -> None:
        """Commit a writer, and let its announcement arrive if there is one."""
        if self.kernel.commit(writer) and self.plan.reach.is_live:
            self.plan.wake()

    def step(self) -> Look | Wait:
        """Decide once, and make the exchange if that is the decision."""
        seconds = self.plan.lanes.road.seconds
        rooms = {number: lane.room(seconds) for number, lane in self.plan.lanes.items()}
        step = self.plan.decide(self.now)
        if isinstance(step, Wait):
            return step
        assert all(0 < count <= rooms[number] for number, count in step.want.items()), "wants more than room"
        sent_at = self.now
        self.looks.append((sent_at, step))
        answer = self.kernel.exchange(step, self.settings.lease_seconds)
        self.kernel.now += self.exchange_seconds
        self.meanwhile()
        for report in (*step.done, *step.failed):
            self.reported[_attempt(report.delivery)] += 1
            self.renewed_at.pop(_attempt(report.delivery), None)
        for delivery in (*step.renew, *answer.taken):
            self.renewed_at[_attempt(delivery)] = sent_at
        for delivery in answer.taken:
            self.running[_attempt(delivery)] = delivery
        self.plan.absorb(step, answer, sent_at=sent_at, now=self.now)
        for place in answer.lost:
            self.plan.leases.give_up(place)
        return step

    def settle_down(self) -> Wait:
        """Step until there is nothing to do; returns for how long."""
        for _ in range(2000):
            step = self.step()
            if isinstance(step, Wait) and step.seconds > 0.06:
                return step
            if isinstance(step, Wait):
                self.kernel.now += step.seconds
        raise AssertionError("the plan never comes to rest: it looks in a tight loop")

    def advance(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, acting whenever the plan wants to."""
        end = self.now + seconds
        while self.now < end and not until():
            step = self.step()
            if isinstance(step, Wait):
                assert step.seconds > 0, "rests for no time at all"
                self.kernel.now = min(end, self.now + step.seconds)

    def finish(self, attempt: str | None = None, **report: Any) -> Delivery:
        """End one running attempt."""
        delivery = self.running.pop(attempt or next(iter(self.running)))
        self.plan.finished([Report(delivery, **report)])
        return delivery

    def count_looks(self, since: float) -> int:
        """How many exchanges were made since a moment."""
        return sum(1 for at, _ in self.looks if at >= since)

    def fall_asleep(self) -> None:
        """Live, with nothing to do, until asleep."""
        if not self.plan.reach.is_live:
            self.plan.live("broadcast", self.now)
        self.advance(5, until=lambda: self.plan.phase is Phase.ASLEEP)
        assert self.plan.phase is Phase.ASLEEP


def _attempt(delivery: Delivery) -> str:
    return f"{delivery.message.id}/{delivery.subscription}/{delivery.lease}"
