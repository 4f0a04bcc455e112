"""What do workers do? They take, report, freeze, overlap, and ask again when an answer is lost."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncpg
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.kernel.actors import STRICT, Busy, Hand, Report
from tests.kernel.drawing import kinds, leases
from tests.kernel.model import HOUR
from tests.kernel.subscribing import DECLARED, Subscribing

_BAD_OUTPUT: list[dict[str, Any]] = [{"key": "no such key"}, {"key": "k.a", "priority": 7}]


class Working(Subscribing):
    """The steps of workers that exchange."""

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
            self._subscribe(hand, {name: DECLARED[name][0] for name in ("a.exact", "d.late")})
            self._settle(hand)
            with suppress(Busy):
                answer = self._exchange(hand, want={self.numbers["a.exact"]: 3}, due=True)
                self._exchange(hand, [Report(taken, "done") for taken in answer.taken])

    @rule(data=st.data(), kinds=st.lists(kinds, min_size=1, max_size=3))
    def work(self, data: st.DataObject, kinds: list[str]) -> None:
        """A worker exchanges once or some times: it takes, and reports some of what it holds."""
        hand = self._free_hand(data)
        for kind in kinds:
            self._work(data, hand, kind)

    @precondition(lambda self: self.model.deliveries and not self._open())
    @rule(data=st.data())
    def stand_still(self, data: st.DataObject) -> None:
        """What lets the deliveries of a key go is lost, however that came about; the next sweep heals the key."""
        hand = self._free_hand(data)
        places = [
            d.place
            for d in self.model.deliveries.values()
            if d.subscription.was_ordered and d.subscription.number in hand.lanes and not self.model.beside(d)
            and d.lease is None and not d.is_blocking and self.model.is_due(d)
        ]  # fmt: skip
        if not places or hand.started is None:
            return
        id_, number = data.draw(st.sampled_from(sorted(places)))
        statement = (
            "update runtime.deliveries set visible_at = 'infinity' "
            "where message_id = $1 and subscription = $2 and ordered_key is not null"
        )
        with suppress(Busy):
            self._run(self.database.operator.execute(statement, id_, number))
            # No look before the sweep: until then it is as wrong as it can be.
            self._exchange(hand, beat=True)

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

    @precondition(lambda self: any(hand.held and not hand.pending for hand in self.hands))
    @rule(data=st.data(), bad=st.sampled_from(_BAD_OUTPUT))
    def spoil(self, data: st.DataObject, bad: dict[str, Any]) -> None:
        """K3: one bad emit refuses the exchange and changes nothing; sent one by one, it alone is a failed attempt."""
        hand = self._one_of(data, [each for each in self.hands if each.held and not each.pending])
        reports = self._draw_reports(data, hand)
        mine = [taken for taken in hand.held.values() if self.model.holds(taken)]
        if not mine:
            return
        spoilt = mine[0]
        reports = [report for report in reports if report.taken is not spoilt]
        emits = self._drafts([{"key": "k.c"}, bad])
        try:
            self._exchange(hand, [*reports, Report(spoilt, "done", emits=emits)])
        except Busy:
            return
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError):
            # Nothing has happened under this number.
            hand.worker.n -= 1
        else:
            raise AssertionError(f"K3: {emits} were taken")
        self._look()
        for report in [*reports, Report(spoilt, "failed")]:
            with suppress(Busy):
                self._exchange(hand, [report])

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
