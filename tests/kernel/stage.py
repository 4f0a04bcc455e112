"""How is a step carried out and held to the model? Calls, what they should have answered, a look at everything."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg

from tests.kernel.actors import STRICT, Busy, Hand, Pending, Report, Serialization, Writer
from tests.kernel.comparison import compare
from tests.kernel.driver import Answer, Taken, Worker
from tests.kernel.model import HOUR, Draft, Message, Model
from tests.kernel.state import Database, Place, State
from tests.kernel.watch import Watch

DEDUP_SECONDS = 3 * HOUR


class Stage(Watch):
    """The actors over one database, and the model beside it."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.database.reset()
        self.model = Model()
        self.hands = [Hand(Worker(connection)) for connection in self.database.workers]
        self.writers = [Writer(connection) for connection in self.database.writers]
        self.tokens = 0
        self.numbers: dict[str, int] = {}

    def _begin(self) -> None:
        self.model.step += 1

    def _open(self) -> bool:
        return any(w.isolation for w in self.writers) or any(hand.pending for hand in self.hands)

    def _run(self, call: Any) -> Any:
        try:
            return self.database.run(call)
        except asyncpg.LockNotAvailableError as error:
            assert self._open(), "it waits for a lock nobody holds"
            raise Busy from error
        except asyncpg.SerializationError as error:
            assert any(w.isolation in STRICT for w in self.writers)
            raise Serialization from error

    def _operate(self, function: str, *args: Any, **named: Any) -> Any:
        places = [f"${place}" for place in range(1, len(args) + 1)]
        places += [f"{name} => ${place}" for place, name in enumerate(named, len(args) + 1)]
        return self._run(
            self.database.operator.fetchval(
                f"select public.{function}({', '.join(places)})", *args, *named.values()
            )
        )

    def _subscribe(self, hand: Hand, declarations: dict[str, dict[str, Any]]) -> None:
        self._begin()
        given = [{"name": name, **declaration} for name, declaration in declarations.items()]
        try:
            numbers = self._run(hand.worker.subscribe(*given, announce=["realtime"], settle=False))
        except Busy:
            return
        hand.started = hand.started or self.model.step
        hand.lanes = set(numbers.values())
        hand.wake()
        self.numbers |= numbers
        for name, declaration in declarations.items():
            self.model.declare(numbers[name], name, declaration, hand.started)
        self._look()

    def _message(self, id_: int, draft: Draft, view: int, **more: Any) -> Message:
        now = self.model.now
        due = None if draft.delay is None else now + draft.delay
        expires = None if draft.expires_in is None else now + draft.expires_in
        return Message(id_, draft, now, due, expires, self.model.step, view, **more)

    def _send(
        self, connection: Any, batch: list[Draft], view: int, seen: dict[str, tuple[int, int]]
    ) -> tuple[list[Message], dict[str, tuple[int, int]]]:
        rows = self._run(
            connection.fetchval("select public.stream_send($1)", [draft.wire() for draft in batch])
        )
        assert len(rows) == len(batch)
        stored, kept = [], dict(seen)
        for draft, row in zip(batch, rows, strict=True):
            duplicate = self.model.is_duplicate(draft, kept)
            assert row["duplicate"] == duplicate, f"G10: {draft} {row}"
            if duplicate:
                assert draft.dedup_key
                assert row["id"] == (kept.get(draft.dedup_key) or self.model.dedup[draft.dedup_key])[0], "G10"
                continue
            stored.append(self._message(row["id"], draft, view))
            if draft.dedup_key:
                kept[draft.dedup_key] = (row["id"], self.model.now + DEDUP_SECONDS)
        return stored, kept

    def _insert(self, connection: Any, draft: Draft, view: int, seen: dict[str, tuple[int, int]]) -> Message:
        duplicate = self.model.is_duplicate(draft, seen)
        statement = (
            "insert into public.consciousness_stream (key, value, priority, deliver_at, expires_at, dedup_key) "
            "values ($1, $2, $3, clock_timestamp() + make_interval(secs => $4), "
            "clock_timestamp() + make_interval(secs => $5), $6) returning id"
        )
        columns = (draft.key, draft.token, draft.priority, draft.delay, draft.expires_in, draft.dedup_key)
        try:
            id_ = self._run(connection.fetchval(statement, *columns))
        except asyncpg.UniqueViolationError:
            assert duplicate, "G10: refused as a duplicate, and is none"
            raise
        assert not duplicate, "G10: stored twice"
        if draft.dedup_key:
            seen[draft.dedup_key] = (id_, self.model.now + DEDUP_SECONDS)
        return self._message(id_, draft, view)

    def _close(self, writer: Writer, how: str) -> None:
        stored = writer.messages if how == "commit" else []
        kept = writer.dedup if how == "commit" else {}
        try:
            self._run(writer.connection.execute(how))
        except Serialization:
            assert writer.isolation == "serializable"
            stored, kept = [], {}
        writer.isolation, writer.messages, writer.dedup = None, [], {}
        writer.locks, writer.locked = False, set()
        self.model.dedup |= kept
        self._look(stored)

    def _exchange(
        self,
        hand: Hand,
        reports: Sequence[Report] = (),
        *,
        want: dict[int, int] | None = None,
        lease: int = HOUR,
        is_open: bool = False,
        **options: Any,
    ) -> Answer:
        self._begin()
        lists = {
            "done": [r.wire() for r in reports if r.outcome == "done"] or None,
            "failed": [r.wire() for r in reports if r.outcome not in ("done", "renew")] or None,
            "renew": [r.wire() for r in reports if r.outcome == "renew"] or None,
        }
        request = {**lists, "want": want, "lease": float(lease), **options}
        alone_in_time = not self._open()
        try:
            answer: Answer = self._run(hand.worker.exchange(**request))
        except Busy:
            # Nothing has happened under this number.
            hand.worker.n -= 1
            raise
        if "sleep" not in options:
            hand.wake()
        accepted = self._judge_reports(reports, answer)
        if want is not None:
            hand.cursors = answer.more.get("cursors")
        for report in reports:
            if report.outcome != "renew":
                hand.held.pop((report.taken.id, report.taken.subscription), None)
                hand.stale.append(report.taken)
        emits = [(draft, report.taken) for report in accepted for draft in report.emits]

        if is_open:
            abandoned = {d.place for d in self.model.abandoned(want or {})} - self._touched()
            trial = self.model.fork()
            self._take(trial, abandoned, answer, lease)
            rows = {(t.id, t.subscription) for t in answer.taken} | {
                (r.taken.id, r.taken.subscription) for r in accepted
            }
            now = self.model.now

            declared = {number: s.declaration for number, s in self.model.subscriptions.items()}

            def apply(state: State) -> None:
                # Under the limits as they were when it reported: others may have declared new ones since.
                with self._declared_as(declared):
                    self._report(accepted, lease)
                    for place in abandoned:
                        self.model.crash(self.model.deliveries[place])
                for taken in answer.taken:
                    delivery = self.model.deliveries[taken.id, taken.subscription]
                    assert delivery.lease is None, f"G2: {delivery} was taken twice"
                    delivery.lease, delivery.due = taken.lease, now + lease
                    delivery.is_suspended = delivery.is_unsettled = False
                    hand.held[taken.id, taken.subscription] = taken
                self._drop(want or {}, state)
                hand.last = None if answer.more.get("unknown") else (request, answer)

            hand.pending = Pending(apply, rows | abandoned, emits, self.model.step)
            return answer

        self._report(accepted, lease)
        state = self.database.look()
        # In time to be taken by the same exchange.
        self.model.committed(self._emitted(emits, state), state)
        self.model.adopt(state, begun=self.model.step)
        before = self.model.fork() if want and options.get("due") else None
        due = bool(options.get("due"))
        abandoned = {d.place for d in self.model.abandoned(want or {})} - self._touched() if due else set()
        self._take(self.model, abandoned, answer, lease)
        hand.held |= {(t.id, t.subscription): t for t in answer.taken}
        hand.last = None if answer.more.get("unknown") else (request, answer)
        dropped = self._drop(want or {}, state)
        self._look(state=state)
        if before is not None and want and alone_in_time and "cursors" not in options:
            self._check_taking(before, abandoned, want, answer, dropped, alone=bool(options.get("alone")))
        return answer

    @contextmanager
    def _declared_as(self, declared: Mapping[int, Mapping[str, Any]]) -> Iterator[None]:
        known = [self.model.subscriptions[n] for n in declared if n in self.model.subscriptions]
        today = [subscription.declaration for subscription in known]
        for subscription in known:
            subscription.declaration = declared[subscription.number]
        yield
        for subscription, declaration in zip(known, today, strict=True):
            subscription.declaration = declaration

    def _judge_reports(self, reports: Sequence[Report], answer: Answer) -> list[Report]:
        accepted = [report for report in reports if self.model.holds(report.taken)]
        refused = [r for r in reports if r not in accepted]
        told = {(r.taken.id, r.taken.subscription) for r in refused if r.outcome != "renew"}
        lost = {(r.taken.id, r.taken.subscription) for r in refused if r.outcome == "renew"}
        assert answer.refused == told, f"G3: refused {answer.refused}, should be {told}"
        assert {(m, s) for m, s in answer.more.get("lost") or ()} == lost, "G3: lost leases"
        return accepted

    def _report(self, accepted: Sequence[Report], lease: int) -> None:
        for report in sorted(
            accepted,
            key=lambda r: ("done", "failed").index(r.outcome) if r.outcome in ("done", "failed") else 2,
        ):
            delivery = self.model.holds(report.taken)
            assert delivery is not None, f"G3: {report} was taken meanwhile"
            if report.outcome == "renew":
                delivery.due = self.model.now + lease
            elif report.outcome == "done":
                self.model.end(delivery, "done")
            else:
                self.model.fail(delivery, report.outcome, report.delay, report.waits)

    def _take(self, model: Model, abandoned: set[Place], answer: Answer, lease: int) -> None:
        for place in abandoned:
            model.crash(model.deliveries[place])
        untouchable = self._touched()
        for taken in answer.taken:
            assert (taken.id, taken.subscription) not in untouchable, f"G2: {taken} is in another's hands"
            model.take(taken, model.now + lease)

    def _drop(self, want: dict[int, int], state: State) -> list[Place]:
        gone = [
            d
            for d in list(self.model.deliveries.values())
            if d.place not in state.deliveries
            and d.subscription.number in want
            and self.model.is_due(d)
            and self.model.is_expired(d)
        ]
        for delivery in gone:
            delivery.subscription.expired += 1
            self.model.end(delivery, "expired")
        return [d.place for d in gone]

    def _emitted(
        self, emits: list[tuple[Draft, Taken]], state: State, step: int | None = None
    ) -> list[Message]:
        """G4: which of these must be there now, under the ids the kernel gave them; inserted at that step."""
        ids = {row["value"]: id_ for id_, row in state.messages.items()}
        stored = []
        for draft, taken in emits:
            if self.model.is_duplicate(draft, {}):
                continue
            assert draft.token in ids, f"G4: {draft} was not emitted"
            agent = self.model.subscriptions[taken.subscription].name.partition(".")[0]
            stored.append(
                self._message(ids[draft.token], draft, step or self.model.step, parent=taken.id, agent=agent)
            )
            if draft.dedup_key:
                self.model.dedup[draft.dedup_key] = (ids[draft.token], self.model.now + DEDUP_SECONDS)
        return stored

    def _close_exchange(self, hand: Hand, commits: bool) -> None:
        pending, hand.pending = hand.pending, None
        assert pending is not None
        self._run(hand.worker.connection.execute("commit" if commits else "rollback"))
        if not commits:
            hand.worker.n -= 1
            self._look()
            return
        state = self.database.look()
        pending.apply(state)
        emitted = self._emitted(pending.emits, state, pending.begun)
        self._look(emitted, state=state, begun=pending.begun)

    def _doze(self, hand: Hand, amount: int) -> None:
        if hand.asleep or not all(self.model.subscriptions[number].settled for number in hand.lanes):
            return
        want = dict.fromkeys(sorted(hand.lanes), amount)
        options: dict[str, Any] = {} if hand.fence is None else {"fence": hand.fence}
        try:
            answer = self._exchange(hand, want=want, due=True, sleep=True, **options)
        except Busy:
            return
        more = answer.more
        hand.fence = more.get("fence")
        if answer.taken or more["full"] or more["look_again"] or more["poison"]:
            hand.wake()
        elif more["quiet"]:
            hand.asleep = True
            hand.timer = None if more["next_due"] is None else self.model.now + more["next_due"]
            self._check_wakeups()

    def _look(
        self,
        stored: Sequence[Message] = (),
        *,
        state: State | None = None,
        announced: set[str] = frozenset(),  # type: ignore[assignment]
        begun: int | None = None,
    ) -> State:
        """Read everything and hold it to the model; `begun` is the step at which began what has ended just now."""
        state = state or self.database.look()
        for hand in self.hands:
            if {str(hand.worker.id)} & (state.announced | announced):
                hand.wake()
        for message in stored:
            if message.draft.dedup_key:
                self.model.dedup[message.draft.dedup_key] = (message.id, self._kept_until(message))
        self.model.committed(stored, state)
        self.model.settled(state)
        self.model.adopt(state, begun=begun or self.model.step)
        compare(self.model, state)
        self._check_wakeups()
        return state

    def _kept_until(self, message: Message) -> int:
        return message.created + DEDUP_SECONDS
