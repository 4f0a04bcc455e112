"""What can happen to a kernel? Whatever workers, writers and an operator can do, in any order."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

import asyncpg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.kernel.actors import STRICT, Busy, Hand, Report, Serialization, Writer
from tests.kernel.driver import Worker
from tests.kernel.model import HOUR, Draft
from tests.kernel.stage import DEDUP_SECONDS, Stage
from tests.kernel.state import Database

Actor = TypeVar("Actor", Hand, Writer)
_WORKERS, _WRITERS = 3, 2

# Each subscription as one release declares it, and as the next does.
_DECLARED: dict[str, list[dict[str, Any]]] = {
    "a.exact": [{"patterns": ["k.a"], "max_crashes": 3}, {"patterns": ["k.a", "k.b"], "max_attempts": 2}],
    "b.wild": [{"patterns": ["k.*"]}, {"patterns": ["k.>", "x.*.z"], "max_attempts": 3}],
    "c.ordered": [{"patterns": ["k.a", "k.b"], "ordered": True, "max_crashes": 3}, {"patterns": ["k.a"]}],
    "d.late": [{"patterns": ["k.a"], "start": "earliest"}, {"patterns": ["k.a", "k.b"], "ordered": True}],
    "e.blocking": [
        {
            "patterns": [">"],
            "start": "earliest",
            "ordered": True,
            "dead_blocks": True,
            "max_attempts": 2,
            "max_crashes": 3,
        },
        {"patterns": ["k.>"], "start": "earliest", "ordered": True, "dead_blocks": False},
    ],
}

drafts: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    key=st.sampled_from(["k.a", "k.a", "k.a", "k.b", "k.c", "x.y.z"]),
    priority=st.sampled_from([0, 0, 0, 1, -1]),
    delay=st.sampled_from([None, None, None, None, HOUR, 3 * HOUR]),
    expires_in=st.sampled_from([None, None, None, None, HOUR, 2 * HOUR]),
    dedup_key=st.sampled_from([None, None, None, "d1", "d2"]),
)
outcomes = st.sampled_from(
    [*["done"] * 3, *["emit", "failed", "renew"] * 2, "dead", "later", "released", "keep", "vanish"]
)
delays = st.sampled_from([0, 0, HOUR, 3 * HOUR])
leases = st.sampled_from([HOUR, HOUR, 3 * HOUR])
kinds = st.sampled_from(["sweep", "sweep", "fresh", "report", "alone", "beat"])


class KernelMachine(Stage, RuleBasedStateMachine):
    """The kernel's functions, step by step, against the model."""

    # Steps

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Somebody subscribes before anything is written, or not."""
        how_many = data.draw(st.sampled_from([2, 1, 0]))
        if how_many == 1:
            self._subscribe(self.hands[0], {"a.exact": _DECLARED["a.exact"][0]})
        elif how_many:
            self.subscribe(data)
            self.subscribe(data)
        self.settle_all()

    def subscribe(self, data: st.DataObject) -> None:
        """A worker declares subscriptions, in either release's words."""
        hand = self._free_hand(data, started=False)
        chosen = data.draw(st.sets(st.sampled_from(sorted(_DECLARED)), min_size=1, max_size=3))
        release = data.draw(st.integers(0, 1))
        self._subscribe(
            hand, {name: _DECLARED[name][min(release, len(_DECLARED[name]) - 1)] for name in sorted(chosen)}
        )

    @rule(data=st.data(), leaves=st.booleans(), isolation=st.sampled_from([None, "read committed", *STRICT]))
    def come_and_go(self, data: st.DataObject, leaves: bool, isolation: str | None) -> None:
        """A worker declares what it serves, perhaps for one that ends; perhaps beside a writer that began before."""
        writer = self.writers[0]
        if isolation is not None and writer.isolation is None:
            self.write(data, 0, isolation, data.draw(st.sampled_from(["send", "look"])))
        if leaves:
            self.restart(data)
        self.subscribe(data)
        if isolation is None:
            self.send([{"key": "k.a"}, {"key": "k.b"}], 0, False)
            self.serve(data)
        else:
            for hand in self.hands:
                self._settle(hand)
            self.write(data, 0, isolation, "send")
            if writer.isolation is not None:
                self.close(data, "commit")

    @precondition(lambda self: "a.exact" in self.numbers and "d.late" not in self.numbers)
    @rule()
    def share(self) -> None:
        """What one subscription is about to end, another one's history makes its own as well."""
        free = [hand for hand in self.hands if hand.pending is None]
        self.send([{"key": "k.a"}, {"key": "k.a"}], 0, False)
        for hand in free[:1]:
            self._subscribe(hand, {name: _DECLARED[name][0] for name in ("a.exact", "d.late")})
            self._settle(hand)
            with suppress(Busy):
                answer = self._exchange(hand, want={self.numbers["a.exact"]: 3}, due=True)
                self._exchange(hand, [Report(taken, "done") for taken in answer.taken])

    def restart(self, data: st.DataObject) -> None:
        """Another worker starts in its place."""
        hand = self._free_hand(data)
        if hand.started is None:
            return
        self._begin()
        self._run(self.database.operator.fetchval("select public.stream_leave($1)", hand.worker.id))
        place = self.hands.index(hand)
        self.hands[place] = Hand(Worker(hand.worker.connection), stale=[*hand.stale, *hand.held.values()])
        for each in self.hands:
            each.wake()
        self._look()

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """A worker brings its subscriptions one step closer."""
        hand = self._free_hand(data)
        with suppress(Busy):
            self._exchange(hand, settle=True)

    @rule()
    def settle_all(self) -> None:
        """Every worker brings its subscriptions as far as open writers let it."""
        for hand in self.hands:
            self._settle(hand)
            is_settled = all(self.model.subscriptions[number].settled for number in hand.lanes)
            assert is_settled or self._open(), "K5: does not settle"

    def _settle(self, hand: Hand) -> None:
        if hand.started is None or hand.pending:
            return
        # Four do, unless a foreign transaction is about; one of the server's own may be.
        for tries in range(100):
            is_settled = all(self.model.subscriptions[number].settled for number in hand.lanes)
            if is_settled or (tries >= 4 and self._open()):
                break
            with suppress(Busy):
                self._exchange(hand, settle=True)

    @rule(batch=st.lists(drafts, min_size=1, max_size=4), flood=st.integers(0, 12), plain=st.booleans())
    def send(self, batch: list[dict[str, Any]], flood: int, plain: bool) -> None:
        """A batch by stream_send, with many of one key at times; or one row by plain SQL."""
        self._begin()
        connection = self.database.operator
        with suppress(Busy, asyncpg.UniqueViolationError):
            if plain:
                self._look([self._insert(connection, self._drafts(batch[:1])[0], self.model.step, {})])
            else:
                many = self._drafts([*batch, *([{"key": "k.a"}] * flood if flood > 5 else [])])
                self._look(self._send(connection, many, self.model.step, {})[0])

    @rule(
        data=st.data(),
        place=st.integers(0, _WRITERS - 1),
        isolation=st.sampled_from(["read committed", *STRICT]),
        verb=st.sampled_from(["send", "send", "insert", "lock", "look"]),
    )
    def write(self, data: st.DataObject, place: int, isolation: str, verb: str) -> None:
        """A writer looks, writes or holds rows in a transaction that stays open."""
        self._begin()
        writer = self.writers[place]
        if writer.isolation is None:
            look = "select 1 from public.consciousness_stream limit 1"
            self._run(writer.connection.execute(f"begin isolation level {isolation}; {look}"))
            writer.isolation, writer.begun = isolation, self.model.step
        try:
            if verb in ("send", "insert"):
                self._write(writer, self._drafts(data.draw(st.lists(drafts, min_size=1, max_size=2))), verb)
            elif verb == "lock" and self.model.messages:
                # Best such as are about to be marked.
                awaited = {d.message.id for d in self.model.deliveries.values() if d.marks}
                among = st.sampled_from(sorted(awaited or self.model.messages))
                ids = data.draw(st.sets(among, min_size=1, max_size=6))
                statement = "select id from public.consciousness_stream where id = any ($1) for update"
                self._run(writer.connection.fetch(statement, list(ids)))
                writer.locks = True
        except (Busy, Serialization, asyncpg.UniqueViolationError):
            self._close(writer, "rollback")
        self._look()

    def _write(self, writer: Writer, given: list[Draft], verb: str) -> None:
        view = writer.begun if writer.isolation in STRICT else self.model.step
        # A key in use is locked, too: its row stays as it is until this writer ends.
        writer.locks = writer.locks or any(draft.dedup_key for draft in given)
        if verb == "insert":
            writer.messages.append(self._insert(writer.connection, given[0], view, writer.dedup))
        else:
            stored, kept = self._send(writer.connection, given, view, writer.dedup)
            writer.messages += stored
            writer.dedup |= kept

    @precondition(lambda self: any(writer.isolation for writer in self.writers))
    @rule(data=st.data(), how=st.sampled_from(["commit", "commit", "commit", "rollback"]))
    def close(self, data: st.DataObject, how: str) -> None:
        """A writer ends its transaction."""
        self._begin()
        self._close(self._one_of(data, [w for w in self.writers if w.isolation]), how)

    @rule(data=st.data(), kinds=st.lists(kinds, min_size=1, max_size=3))
    def work(self, data: st.DataObject, kinds: list[str]) -> None:
        """A worker exchanges once or some times: it takes, and reports some of what it holds."""
        hand = self._free_hand(data)
        for kind in kinds:
            self._work(data, hand, kind)

    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        """A worker takes whatever there is."""
        self._work(data, self._free_hand(data), "sweep")

    @rule(data=st.data())
    def serve(self, data: st.DataObject) -> None:
        """Every worker takes in turn, and reports."""
        for hand in self.hands:
            if hand.started is not None and hand.pending is None:
                self._work(data, hand, "sweep")

    def _work(self, data: st.DataObject, hand: Hand, kind: str) -> None:
        reports = self._draw_reports(data, hand)
        options: dict[str, Any] = {"lease": data.draw(leases)}
        if kind != "report" and hand.lanes:
            amount = data.draw(st.sampled_from([3, 1, 2, 10]))
            options["want"] = dict.fromkeys(sorted(hand.lanes), amount)
        if kind == "fresh" and hand.cursors:
            options["cursors"] = hand.cursors
        if kind in ("sweep", "alone"):
            options |= {"due": True, "alone": kind == "alone"}
        if kind == "beat":
            options["beat"] = True
        with suppress(Busy):
            self._exchange(hand, reports, **options)

    @precondition(lambda self: sum(hand.pending is not None for hand in self.hands) < 2)
    @rule(data=st.data(), lease=leases, reporting=st.booleans())
    def open_exchange(self, data: st.DataObject, lease: int, reporting: bool) -> None:
        """An exchange that has done its work and has not committed."""
        hand = self._free_hand(data)
        reports = self._draw_reports(data, hand) if reporting else []
        self._open_exchange(hand, reports, None if reporting else dict.fromkeys(sorted(hand.lanes), 2), lease)

    def _open_exchange(
        self, hand: Hand, reports: Sequence[Report], want: dict[int, int] | None, lease: int = HOUR
    ) -> None:
        self._run(hand.worker.connection.execute("begin"))
        try:
            self._exchange(hand, reports, want=want, due=True, lease=lease, is_open=True)
        except Busy:
            self._run(hand.worker.connection.execute("rollback"))

    @precondition(lambda self: any(hand.held and not hand.pending for hand in self.hands))
    @rule(data=st.data(), commits=st.sampled_from([True, True, False]), behind=st.booleans())
    def overlap(self, data: st.DataObject, commits: bool, behind: bool) -> None:
        """A worker ends all it holds; before it commits, another one looks for the same and for what stands behind."""
        able = [hand for hand in self.hands if hand.held and not hand.pending]
        subscriptions = self.model.subscriptions
        hand = self._one_of(data, able)
        for each in able:
            if any(subscriptions[taken.subscription].ordered for taken in each.held.values()):
                hand = each
        if behind:
            self.send([{"key": key} for key in sorted({taken.key for taken in hand.held.values()})], 0, False)
        want = dict.fromkeys(sorted(hand.lanes), 3)
        self._open_exchange(hand, [Report(taken, "done") for taken in hand.held.values()], None)
        for other in self.hands:
            if other is not hand and other.pending is None:
                self._subscribe(
                    other, {subscriptions[n].name: dict(subscriptions[n].declaration) for n in hand.lanes}
                )
                with suppress(Busy):
                    self._exchange(other, want=want, due=True)
        if hand.pending:
            self._begin()
            self._close_exchange(hand, commits)

    @precondition(lambda self: any(hand.pending for hand in self.hands))
    @rule(data=st.data(), commits=st.sampled_from([True, True, False]))
    def close_exchange(self, data: st.DataObject, commits: bool) -> None:
        """It commits, or its connection is lost before."""
        self._begin()
        self._close_exchange(self._one_of(data, [hand for hand in self.hands if hand.pending]), commits)

    @precondition(lambda self: any(hand.last and not hand.pending for hand in self.hands))
    @rule(data=st.data(), back=st.sampled_from([0, 0, 0, 1]))
    def repeat(self, data: st.DataObject, back: int) -> None:
        """K2: an exchange whose answer was lost is sent again."""
        hand = self._one_of(data, [each for each in self.hands if each.last and not each.pending])
        assert hand.last is not None
        request, first = hand.last
        self._begin()
        try:
            again = self._run(hand.worker.exchange(n=hand.worker.n - back, **request))
        except Busy:
            return
        if back:
            assert again.raw.get("stale"), "K2: an older number took part"
            assert not again.taken, "K2: an older number took"
        else:
            lease = {each.lease for each in first.taken}
            living = {
                d.place
                for d in self.model.deliveries.values()
                if d.lease in lease and d.due is not None and d.due > self.model.now
            }
            assert again.raw.get("repeated"), "K2: applied again"
            assert again.refused == first.refused, "K2: answered otherwise"
            assert {(each.id, each.subscription) for each in again.taken} == living, "K2: took otherwise"
        self._look()

    @rule(count=st.integers(1, 3))
    def doze(self, count: int) -> None:
        """All who can try to fall asleep, so often."""
        self._doze_all(count, 3)

    def _doze_all(self, count: int, amount: int) -> None:
        for hand in self.hands:
            for _ in range(count):
                if hand.started is not None and hand.pending is None and not hand.held:
                    self._doze(hand, amount)

    @rule(
        amount=st.sampled_from([1, 3]),
        outcome=st.sampled_from(["done", "failed", "later", "released", "dead"]),
    )
    def rest(self, amount: int, outcome: str) -> None:
        """Every worker ends what it holds, one of each subscription so, and falls asleep if it may."""
        for hand in self.hands:
            if hand.started is not None and hand.pending is None:
                reports = [Report(taken, "done") for taken in hand.held.values()]
                firsts = {report.taken.subscription: report for report in reversed(reports)}
                for report in firsts.values():
                    report.outcome, report.delay = outcome, HOUR
                if reports:
                    with suppress(Busy):
                        self._exchange(hand, reports)
        self._doze_all(4, amount)

    @precondition(lambda self: self.numbers)
    @rule(data=st.data(), how=st.sampled_from(["pause", "dead", "write", "lock", "expired", "flood"]))
    def hold_back(self, data: st.DataObject, how: str) -> None:
        """While every worker rests something is held back; then it comes."""
        name = data.draw(st.sampled_from(sorted(self.numbers)))
        if how == "pause":
            self._pause(name, "pause")
        elif how == "dead":
            self.serve(data)
            self.rest(3, "dead")
        elif how in ("write", "lock"):
            self.write(data, 1, "read committed", "send" if how == "write" else "lock")
        if how in ("pause", "lock"):
            self.send([{"key": "k.a"}, {"key": "k.b"}], 0, False)
        elif how == "flood":
            # Nobody has anything else to do.
            for hand in self.hands:
                if hand.pending is None:
                    self._subscribe(hand, {"c.ordered": _DECLARED["c.ordered"][0]})
                    self._settle(hand)
            self.send([{"key": "k.a"}], 0, False)
            self.rest(1, "failed")
            self.rest(1, "failed")
        self.rest(3, "done")
        self.rest(3, "done")
        if how == "pause":
            self._pause(name, "resume")
        elif how == "dead" and self.model.dead:
            self.redrive(data, "redrive")
        elif how in ("write", "lock") and self.writers[1].isolation is not None:
            self._begin()
            self._close(self.writers[1], "commit")
        elif how == "expired":
            self.send([{"key": "k.a", "expires_in": 0}, {"key": "k.a"}], 0, False)
            self.doze(1)
        elif how == "flood":
            self.send([*[{"key": "k.a"}] * 30, {"key": "k.b"}], 0, False)
            self.rest(1, "done")

    @precondition(lambda self: self._time_can_pass() and any(hand.held for hand in self.hands))
    @rule(data=st.data(), outcome=st.sampled_from(["done", "done", "failed", "later", "renew"]))
    def freeze(self, data: st.DataObject, outcome: str) -> None:
        """A worker freezes until its leases have run out; others take over; then it reports as if nothing had been."""
        hand = self._one_of(data, [hand for hand in self.hands if hand.held])
        late = dict(list(hand.held.items())[:3])
        self.advance(3)
        for other in self.hands:
            if other is not hand and other.started is not None:
                self._work(data, other, "sweep")
        with suppress(Busy):
            self._exchange(hand, [Report(taken, outcome) for taken in late.values()])

    @precondition(lambda self: self._time_can_pass())
    @rule(hours=st.sampled_from([1, 1, 2, 5]))
    def advance(self, hours: int) -> None:
        """Time passes: the timers of sleepers go off, then they sweep at the low rate."""
        self._begin()
        seconds = hours * HOUR
        self._check_timers(self.model.now + seconds)
        self.database.advance(seconds)
        self.model.now += seconds
        for writer in self.writers:
            for message in writer.messages:
                message.move(seconds)
        for hand in self.hands:
            hand.wake()
        self._look()

    @precondition(lambda self: self.numbers and self.model.messages)
    @rule(
        data=st.data(),
        verb=st.sampled_from(["resume", "pause", "replay", "redrive", "redrive", "discard", "prune", "mark"]),
    )
    def operate(self, data: st.DataObject, verb: str) -> None:
        """An operator does something, or a reader of the table itself does."""
        if verb in ("pause", "resume"):
            self.pause(data, verb)
        elif verb == "replay":
            self.replay(data, data.draw(st.sampled_from([">", "k.a", "k.*"])))
        elif verb in ("redrive", "discard") and self.model.dead:
            self.redrive(data, verb)
        elif verb == "prune":
            self.prune(data.draw(st.sampled_from([2 * HOUR, 4 * HOUR])))
        elif verb == "mark":
            self.mark(data)

    def pause(self, data: st.DataObject, verb: str) -> None:
        """An operator pauses or resumes a subscription."""
        self._pause(data.draw(st.sampled_from(sorted(self.numbers))), verb)

    def _pause(self, name: str, verb: str) -> None:
        self._begin()
        with suppress(Busy):
            self._operate(f"stream_{verb}", name)
            self.model.subscriptions[self.numbers[name]].paused = verb == "pause"
        self._look()

    def replay(self, data: st.DataObject, pattern: str) -> None:
        """An operator has some history delivered again."""
        self._begin()
        subscription = self.model.subscriptions[
            self.numbers[data.draw(st.sampled_from(sorted(self.numbers)))]
        ]
        if not subscription.settled:
            return
        ids = data.draw(st.sets(st.sampled_from(sorted(self.model.messages)), min_size=1, max_size=3))
        with suppress(Busy):
            answer = self._operate("stream_replay", subscription.name, pattern=pattern, ids=sorted(ids))
            found = self.model.matching(sorted(ids), pattern, subscription)
            assert answer["replayed"] == self.model.redeliver(found, subscription)
        self._look()

    def redrive(self, data: st.DataObject, verb: str) -> None:
        """An operator has dead letters delivered again, or discards them."""
        self._begin()
        ids = data.draw(st.sets(st.sampled_from(sorted(self.model.dead)), min_size=1, max_size=3))
        state = None
        with suppress(Busy):
            answer = self._operate(f"stream_{verb}", sorted(ids))
            state = self.database.look()
            model = self.model
            count = model.redrive(ids, state) if verb == "redrive" else model.discard(ids)
            assert answer["redriven" if verb == "redrive" else "discarded"] == count
        self._look(state=state)

    def prune(self, older_than: int) -> None:
        """What is old goes, and what nobody took by then is counted."""
        self._begin()
        before = self.database.look()
        with suppress(Busy):
            answer = self._operate("stream_prune", older_than)
            assert (answer["pruned"], answer["expired"]) == self.model.prune(older_than, before)
        self._look(announced=before.announced)

    def mark(self, data: st.DataObject) -> None:
        """A reader of the table itself sets processed."""
        self._begin()
        id_ = data.draw(st.sampled_from(sorted(self.model.messages)))
        statement = "update public.consciousness_stream set processed = true where id = $1"
        with suppress(Busy):
            self._run(self.database.operator.execute(statement, id_))
            self.model.messages[id_].processed = True
        self._look()

    def teardown(self) -> None:
        """Everybody ends what they do; a patient worker takes what is left, and then nothing is left."""
        if sys.exc_info()[0] is not None:
            # A step has failed: what follows would only hide why.
            return
        for writer in self.writers:
            if writer.isolation:
                self._begin()
                self._close(writer, "commit")
        for hand in self.hands:
            if hand.pending:
                self._begin()
                self._close_exchange(hand, True)
        if not self.numbers:
            return
        for name in self.numbers:
            self._operate("stream_resume", name)
            self.model.subscriptions[self.numbers[name]].paused = False
        self._look()
        self.advance(10)
        hand = self.hands[0]
        self._subscribe(
            hand,
            {
                name: dict(self.model.subscriptions[number].declaration)
                for name, number in self.numbers.items()
            },
        )
        self.settle_all()
        self._drain(hand)
        self._exchange(hand, beat=True)
        state = self._look()
        assert not state.unmarked, "K10: the sweep leaves messages unmarked"

    def _drain(self, hand: Hand) -> None:
        # One of a key in each round, and a round now and then for one that is taken alone.
        rounds = 30 + 2 * len(self.model.deliveries)
        alone = False
        while self.model.deliveries:
            assert rounds, f"stranded: {list(self.model.deliveries.values())}"
            rounds -= 1
            if any(delivery.is_blocking for delivery in self.model.deliveries.values()):
                self._operate("stream_discard", sorted(self.model.dead))
                self.model.discard(list(self.model.dead))
                self._look()
            reports = [Report(taken, "done") for taken in hand.held.values()]
            want = dict.fromkeys(self.numbers.values(), 10)
            answer = self._exchange(hand, reports, want=want, due=True, alone=alone)
            alone = not alone and bool(answer.more["suspects"])

    def _time_can_pass(self) -> bool:
        # What a transaction has locked could not be moved into the past.
        return not any(w.locks for w in self.writers) and not any(hand.pending for hand in self.hands)

    # Drawing

    def _drafts(self, given: Sequence[dict[str, Any]]) -> list[Draft]:
        self.tokens += len(given)
        return [Draft(self.tokens - place, **each) for place, each in enumerate(given)]

    def _free_hand(self, data: st.DataObject, *, started: bool = True) -> Hand:
        free = [hand for hand in self.hands if hand.pending is None]
        busy = [hand for hand in free if hand.started is not None] if started else free
        return self._one_of(data, busy or free)

    @staticmethod
    def _one_of(data: st.DataObject, actors: list[Actor]) -> Actor:
        # By place, so that an example prints as numbers and not as all that an actor holds.
        return actors[data.draw(st.integers(0, len(actors) - 1))]

    def _draw_reports(self, data: st.DataObject, hand: Hand) -> list[Report]:
        reports = []
        for place in sorted(hand.held):
            outcome = data.draw(outcomes)
            if outcome == "vanish":
                hand.stale.append(hand.held.pop(place))
            elif outcome != "keep":
                reports.append(Report(hand.held[place], outcome))
        named = {(r.taken.id, r.taken.subscription) for r in reports} | hand.held.keys()
        spare = [taken for taken in hand.stale if (taken.id, taken.subscription) not in named]
        # Best one whose delivery is still there, for others to take.
        waiting = [taken for taken in spare if (taken.id, taken.subscription) in self.model.deliveries]
        spare = (waiting or spare)[-6:]
        is_late: bool = data.draw(st.booleans())
        if spare and is_late:
            reports.append(Report(data.draw(st.sampled_from(spare)), data.draw(outcomes)))
        for report in reports:
            if report.outcome in ("keep", "vanish", "emit"):
                first = not any(r.emits for r in reports)
                draft = data.draw(drafts) if first else {"key": "k.c"}
                report.outcome, report.emits = "done", self._drafts([draft, {"key": "k.c"}])
            elif report.outcome in ("failed", "later"):
                report.delay = data.draw(delays)
        return reports


def machine_for(database: Database) -> type[KernelMachine]:
    """The machine over this database."""
    return type("KernelMachine", (KernelMachine,), {"database": database})


def open_database(url: str) -> Database:
    """Connections enough for the machine."""
    return Database(url, workers=_WORKERS, writers=_WRITERS, dedup_seconds=DEDUP_SECONDS)
