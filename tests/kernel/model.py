"""What does the kernel promise? A model of it in plain Python: what is sent, due, held and ended, and nothing of how.

The model cannot know what the kernel is free to choose: ids and leases, which of the due deliveries an exchange takes,
whether a writer older than a subscription reaches it. That it reads from the database (`adopt`); all else it predicts,
and `compare` holds the database to it after every step. Its time only moves by `advance`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.keys import is_exact, matches
from tests.kernel.driver import Taken
from tests.kernel.kept import Kept
from tests.kernel.state import FRESH, PARKED, Place, State

HOUR = 3600
"""All durations are whole hours, so that the real time an example takes does not matter."""


@dataclass(frozen=True)
class Draft:
    """A message before it is stored; its value is a token nobody else has."""

    token: int
    key: str
    priority: int = 0
    delay: int | None = None
    expires_in: int | None = None
    dedup_key: str | None = None

    def wire(self) -> dict[str, Any]:
        """As `stream_send` and emits take it."""
        more = {"delay": self.delay, "expires_in": self.expires_in, "dedup_key": self.dedup_key}
        return {
            "key": self.key,
            "value": self.token,
            "priority": self.priority,
            **{name: value for name, value in more.items() if value is not None},
        }


@dataclass
class Message:
    """A stored message. Steps order what happened; seconds are the model's."""

    id: int
    draft: Draft
    created: int
    due: int | None
    expires: int | None
    inserted: int
    """The step of its insert."""
    view: int
    """The step whose subscriptions its writer could see."""
    committed: int = 0
    parent: int | None = None
    agent: str | None = None
    processed: bool = False

    def move(self, seconds: int) -> None:
        """Not committed while time passed, so its times were not moved with the others."""
        self.created += seconds
        self.due = None if self.due is None else self.due + seconds
        self.expires = None if self.expires is None else self.expires + seconds


@dataclass
class Subscription:
    """A subscription as it was last declared."""

    number: int
    name: str
    declaration: Mapping[str, Any]
    declared: int
    """The step at which the worker started whose declaration holds."""
    created: int
    changed: int
    since: dict[str, int]
    """Pattern → the step from which it holds."""
    former: set[str] = field(default_factory=set)
    served: int | None = None
    """The step at which it first settled."""
    settled: bool = False
    paused: bool = False
    expired: int = 0
    was_ordered: bool = field(init=False)
    """Ordered now or by an earlier declaration: some of its deliveries may still be parked."""
    wants_history: bool = field(init=False)
    """Whether it begins with the first message there is; its first declaration says so."""

    def __post_init__(self) -> None:
        self.was_ordered = self.ordered
        self.wants_history = self.declaration.get("start") == "earliest"

    @property
    def blocks(self) -> bool:
        """Whether a dead letter holds up its key."""
        return bool(self.declaration.get("dead_blocks"))

    @property
    def ordered(self) -> bool:
        """Whether it takes each key in order."""
        return bool(self.declaration.get("ordered"))

    @property
    def marks(self) -> bool:
        """Whether its new deliveries count towards processed."""
        return all(is_exact(pattern) for pattern in self.since)

    @property
    def is_open(self) -> bool:
        """Whether anything may be taken from it."""
        return self.settled and not self.paused

    def must_get(self, message: Message) -> bool:
        """G1: settled, and declared with the pattern, before the writer's view; with its history, any message."""
        return self.served is not None and any(
            matches(pattern, message.draft.key)
            and ((self.wants_history and since == self.created) or max(since, self.served) <= message.view)
            for pattern, since in self.since.items()
        )

    def may_get(self, message: Message) -> bool:
        """Anything it was ever declared for may have been fanned out to it."""
        return any(matches(pattern, message.draft.key) for pattern in (*self.since, *self.former))


@dataclass
class Delivery:
    """A message that waits for, or is held for, one subscription."""

    message: Message
    subscription: Subscription
    marks: bool
    due: int | None = None
    """None: whenever somebody asks."""
    lease: str | None = None
    attempts: int = 0
    crashes: int = 0
    is_blocking: bool = False
    """A dead letter, still here to hold up its key."""
    is_heavy: bool = False
    """Its steps come along when it is taken."""
    is_suspended: bool = False
    is_unsettled: bool = False
    """Its waits are looked at once more; until then it may be taken at any time, and need not be."""
    awaited: tuple[str, ...] = ()

    @property
    def place(self) -> Place:
        """What names it."""
        return self.message.id, self.subscription.number


class Model(Kept):
    """What is committed, and what has to follow from it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.step = 0
        self.messages: dict[int, Message] = {}
        self.subscriptions: dict[int, Subscription] = {}
        self.deliveries: dict[Place, Delivery] = {}
        self.pruned: dict[int, Message] = {}
        self.dead: dict[int, Place] = {}
        self.buried: list[tuple[Place, str]] = []
        """Dead letters whose own id is not known yet, with their reason."""
        self.runs: Counter[tuple[int, int, str, int]] = Counter()
        self.dedup: dict[str, tuple[int, int]] = {}
        """dedup_key → (message, forgotten at)"""

    def fork(self) -> "Model":
        """A copy on which deliveries can be taken and end for trial."""
        other = copy(self)
        other.messages = {id_: copy(message) for id_, message in self.messages.items()}
        other.deliveries = {
            place: replace(d, message=other.messages[d.message.id]) for place, d in self.deliveries.items()
        }
        other.runs, other.buried = Counter(self.runs), list(self.buried)
        self.copy_kept(other)
        return other

    # What writers do

    def declare(self, number: int, name: str, declaration: Mapping[str, Any], started: int) -> None:
        """A worker that started at this step declares it; only a later one changes what is there (K14)."""
        patterns = declaration["patterns"]
        known = self.subscriptions.get(number)
        if known is None:
            since = dict.fromkeys(patterns, self.step)
            self.subscriptions[number] = Subscription(
                number, name, declaration, started, self.step, self.step, since
            )
        elif known.declared < started:
            known.declared = started
            if known.declaration == declaration:
                return
            known.former |= known.since.keys()
            known.since = {pattern: known.since.get(pattern, self.step) for pattern in patterns}
            known.declaration, known.changed = declaration, self.step
            known.was_ordered = known.was_ordered or known.ordered
            if not known.blocks:
                self._let_go(d for d in self.deliveries.values() if d.subscription is known)

    def is_duplicate(self, draft: Draft, seen: Mapping[str, tuple[int, int]]) -> bool:
        """G10: whether its dedup_key is in use, here or in what the same writer has stored before."""
        if draft.dedup_key is None:
            return False
        kept = seen.get(draft.dedup_key) or self.dedup.get(draft.dedup_key)
        return kept is not None and kept[1] > self.now

    def committed(self, messages: Iterable[Message], state: State) -> None:
        """They are there for everybody: each subscription that must get them has a delivery."""
        for message in messages:
            message.committed = self.step
            self.messages[message.id] = message
            for subscription in self.subscriptions.values():
                there = (message.id, subscription.number) in state.deliveries
                must = subscription.must_get(message)
                assert there or not must, f"G1: {subscription.name} did not get {message}"
                if there:
                    assert subscription.may_get(message), f"{subscription.name} got {message}"
                    self._deliver(message, subscription, state)

    def settled(self, state: State) -> None:
        """Take note of subscriptions that settled, and of history that reached those that have not."""
        for number, row in state.subscriptions.items():
            subscription = self.subscriptions[number]
            if not subscription.settled:
                complete = row["settled"] and subscription.wants_history and subscription.served is None
                for message in self.messages.values():
                    place = (message.id, number)
                    wanted = any(matches(pattern, message.draft.key) for pattern in subscription.since)
                    if place in self.deliveries or not subscription.may_get(message):
                        continue
                    assert place in state.deliveries or not (complete and wanted), (
                        f"G1: {subscription.name} settled without {message}"
                    )
                    if place in state.deliveries:
                        self._deliver(message, subscription, state)
            subscription.settled = row["settled"]
            if subscription.settled and subscription.served is None:
                subscription.served = self.step

    def _deliver(self, message: Message, subscription: Subscription, state: State) -> None:
        place = (message.id, subscription.number)
        marks = state.deliveries[place]["marks"]
        if subscription.changed <= message.view:
            assert marks == subscription.marks, f"marks of {place}"
        due = message.due if message.due is not None and message.due > self.now else None
        self.deliveries[place] = Delivery(message, subscription, marks, due)

    def redeliver(
        self, messages: Iterable[Message], subscription: Subscription, *, keeps_steps: bool = False
    ) -> int:
        """Replay or redrive: a fresh delivery that marks nothing; one still pending is left alone."""
        fresh = [m for m in messages if (m.id, subscription.number) not in self.deliveries]
        for message in fresh:
            place = (message.id, subscription.number)
            if not keeps_steps:
                self.forget_steps(place)
            self.deliveries[place] = Delivery(message, subscription, marks=False, is_heavy=keeps_steps)
        return len(fresh)

    def matching(self, ids: Iterable[int], pattern: str, subscription: Subscription) -> list[Message]:
        """Those of the messages that are meant by the pattern and by the subscription."""
        found = [self.messages[id_] for id_ in ids]
        patterns = tuple(subscription.since)
        return [
            m
            for m in found
            if matches(pattern, m.draft.key) and any(matches(p, m.draft.key) for p in patterns)
        ]

    def redrive(self, ids: Iterable[int], state: State) -> int:
        """Dead letters are delivered again, with fresh attempts; a pruned message comes back from its copy."""
        # Where the subscription is no more there is nobody to deliver to.
        chosen = [letter for letter in sorted(ids) if self.dead[letter][1] in self.subscriptions]
        for id_, number in [self.dead.pop(letter) for letter in chosen]:
            self.forget_undone((id_, number))
            if id_ not in self.messages:
                self.messages[id_] = self._restored(self.pruned.pop(id_), state)
            blocking = self.deliveries.get((id_, number))
            if blocking is not None and blocking.is_blocking:
                blocking.is_blocking, blocking.attempts, blocking.crashes, blocking.due = False, 0, 0, None
            self.redeliver([self.messages[id_]], self.subscriptions[number], keeps_steps=True)
        return len(chosen)

    def _restored(self, message: Message, state: State) -> Message:
        draft = Draft(message.draft.token, message.draft.key, message.draft.priority)
        more = {
            "parent": message.parent,
            "agent": message.agent,
            "processed": state.messages[message.id]["processed"],
        }
        return Message(message.id, draft, self.now, None, None, self.step, self.step, self.step, **more)

    def forget(self) -> None:
        """K11: what is kept of dedup_keys goes when their time is over."""
        self.dedup = {key: kept for key, kept in self.dedup.items() if kept[1] > self.now}

    def remove(self, number: int) -> int:
        """A subscription goes with its deliveries: how many. Its dead letters and its runs stay."""
        subscription = self.subscriptions.pop(number)
        waiting = [d for d in self.deliveries.values() if d.subscription is subscription]
        for delivery in waiting:
            self.end(delivery, "removed")
        return len(waiting)

    def discard(self, ids: Iterable[int]) -> int:
        """Dead letters go for good, and hold up nothing any more."""
        places = [self.dead.pop(letter) for letter in sorted(ids)]
        self._let_go(self.deliveries[place] for place in places if place in self.deliveries)
        for place in places:
            if place[0] not in self.messages:
                self.forget_steps(place)
        return len(places)

    def _let_go(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in [d for d in deliveries if d.is_blocking]:
            self.end(delivery, "let go")

    # How deliveries end

    def end(self, delivery: Delivery, outcome: str, *, died_of: str | None = None) -> None:
        """The one outcome a delivery has."""
        self._log(delivery, outcome)
        if died_of is not None:
            reason = self.undo_first(delivery, died_of)
            if reason is None:
                return
            self.buried.append((delivery.place, reason))
            if delivery.subscription.blocks:
                delivery.is_blocking, delivery.lease, delivery.due = True, None, None
                delivery.crashes += died_of == "crashed"
                return
        assert self.deliveries.pop(delivery.place) is delivery
        self.loosen(delivery.place)
        message = delivery.message
        if delivery.marks and not any(d.marks for d in self.deliveries.values() if d.message is message):
            message.processed = True

    def _log(self, delivery: Delivery, outcome: str) -> None:
        if outcome in ("released", "pruned", "let go", "removed"):
            return
        attempt = delivery.attempts + delivery.crashes + 1
        self.runs[(*delivery.place, outcome, 0 if outcome == "expired" else attempt)] += 1

    def holds(self, taken: Taken) -> Delivery | None:
        """The delivery, if this lease on it is the current one (G3)."""
        delivery = self.deliveries.get((taken.id, taken.subscription))
        return delivery if delivery is not None and delivery.lease == taken.lease else None

    def fail(self, delivery: Delivery, outcome: str, delay: int, awaited: Iterable[str] = ()) -> None:
        """An attempt that did not succeed (G5)."""
        limit = delivery.subscription.declaration.get("max_attempts", 5)
        if outcome in ("dead", "undone") or (outcome == "failed" and delivery.attempts + 1 >= limit):
            self.end(delivery, "undone" if outcome == "undone" else "dead", died_of="failed")
            return
        self._log(delivery, outcome)
        delivery.lease = None
        delivery.attempts += outcome == "failed"
        delivery.due = self.now + delay if outcome != "released" else self.now if delivery.crashes else None
        if outcome == "suspended":
            self.suspend(delivery, awaited)

    def abandoned(self, subscriptions: Iterable[int]) -> list[Delivery]:
        """Deliveries of these whose lease has run out: one crash each, when somebody looks (K8)."""
        wanted = {n for n in subscriptions if self.subscriptions[n].is_open}
        return [
            d
            for d in self.deliveries.values()
            if d.subscription.number in wanted
            and d.lease is not None
            and d.due is not None
            and d.due <= self.now
        ]

    def crash(self, delivery: Delivery) -> None:
        """The worker that held it is gone."""
        limit = delivery.subscription.declaration.get("max_crashes", 5)
        if delivery.crashes + 1 >= limit:
            self.end(delivery, "crashed", died_of="crashed")
            return
        self._log(delivery, "crashed")
        delivery.crashes += 1
        delivery.lease, delivery.due = None, self.now

    # What may be taken

    def is_due(self, delivery: Delivery) -> bool:
        """Free, and its time has come."""
        return (
            delivery.subscription.is_open
            and delivery.lease is None
            and not delivery.is_blocking
            and not delivery.is_unsettled
            and (delivery.due is None or delivery.due <= self.now)
        )

    def is_expired(self, delivery: Delivery) -> bool:
        """Its time was over before a handler began: counted, not delivered."""
        expires = delivery.message.expires
        has_begun = delivery.is_heavy and self.has_begun(delivery.place)
        return expires is not None and expires <= self.now and not has_begun

    def of_one_key(self, delivery: Delivery) -> list[Delivery]:
        """The other deliveries of the same key, for an ordered subscription."""
        if not delivery.subscription.was_ordered:
            return []
        return [
            d
            for d in self.deliveries.values()
            if d.subscription is delivery.subscription
            and d.message.draft.key == delivery.message.draft.key
            and d is not delivery
        ]

    def before(self, delivery: Delivery) -> list[Delivery]:
        """The earlier ones of the same key."""
        return [d for d in self.of_one_key(delivery) if d.message.id < delivery.message.id]

    def beside(self, delivery: Delivery) -> list[Delivery]:
        """Those of the same key that somebody holds, whatever their ids."""
        return [d for d in self.of_one_key(delivery) if d.lease is not None]

    def takeable(self, subscriptions: Iterable[int], *, poison: bool) -> list[Delivery]:
        """What a patient worker gets of these; poison messages crashed their worker twice and come alone."""
        wanted = set(subscriptions)
        return [
            d
            for d in self.deliveries.values()
            if d.subscription.number in wanted
            and self.is_due(d)
            and (d.crashes >= 2) == poison
            and not self.before(d)
            and not self.beside(d)
        ]

    def take(self, taken: Taken, until: int) -> None:
        """Hold this one to every rule of taking, and lease it."""
        delivery = self.deliveries.get((taken.id, taken.subscription))
        assert delivery is not None, f"{taken} had ended"
        may_come = delivery.is_unsettled and delivery.lease is None and delivery.subscription.is_open
        assert may_come or self.is_due(delivery), f"G2: {delivery} was not free, due and open"
        assert not self.is_expired(delivery), f"{delivery} had expired"
        self.check_told(delivery, taken)
        for earlier in self.before(delivery) if delivery.subscription.ordered else ():
            assert earlier.message.committed >= delivery.message.inserted, f"G8: {delivery} before {earlier}"
        beside = self.beside(delivery) if delivery.subscription.ordered else []
        assert not beside, f"K9: {delivery} was taken beside {beside}"
        assert (taken.key, taken.value) == (delivery.message.draft.key, delivery.message.draft.token)
        assert (taken.attempts, taken.crashes) == (delivery.attempts, delivery.crashes)
        delivery.lease, delivery.due = taken.lease, until
        delivery.is_suspended = delivery.is_unsettled = False

    def prune(self, older_than: int, before: State, locked: set[int]) -> tuple[int, int]:
        """K12: returns how many messages go and how many deliveries nobody took; what somebody locks stays a round."""
        old = [m for m in self.messages.values() if m.created <= self.now - older_than]
        expired = 0
        for delivery in [d for d in self.deliveries.values() if d.message in old]:
            due = before.deliveries[delivery.place]["due"]
            if due in (FRESH, PARKED) or due < -older_than:
                delivery.subscription.expired += 1
                self.end(delivery, "pruned")
                expired += 1
        pending = {d.message.id for d in self.deliveries.values()}
        gone = {m.id for m in old} - pending - locked
        self.pruned |= {id_: self.messages.pop(id_) for id_ in gone}
        for place in self.steps.keys() | self.waits.keys():
            if place[0] in gone and place not in self.dead.values():
                self.forget_steps(place)
        self.runs = Counter({run: n for run, n in self.runs.items() if run[0] not in gone})
        return len(gone), expired
