"""How do workers come and go? They declare what they serve, settle it, and leave."""

from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.kernel.actors import Busy, Hand
from tests.kernel.driver import Worker
from tests.kernel.writing import Writing

# Each subscription as one release declares it, and as the next does.
DECLARED: dict[str, list[dict[str, Any]]] = {
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


class Subscribing(Writing):
    """The steps of workers before they take anything."""

    def subscribe(self, data: st.DataObject) -> None:
        """A worker declares subscriptions, in either release's words."""
        hand = self._free_hand(data, started=False)
        chosen = data.draw(st.sets(st.sampled_from(sorted(DECLARED)), min_size=1, max_size=3))
        release = data.draw(st.integers(0, 1))
        self._subscribe(
            hand, {name: DECLARED[name][min(release, len(DECLARED[name]) - 1)] for name in sorted(chosen)}
        )

    def restart(self, data: st.DataObject) -> None:
        """Another worker starts in its place."""
        self._replace(self._free_hand(data))

    def _replace(self, hand: Hand) -> None:
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
