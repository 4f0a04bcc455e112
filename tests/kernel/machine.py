"""What can happen to a kernel? Whatever workers, writers and an operator can do, in any order.

One kind of step a file, each above the one whose steps it uses: writing, subscribing, working, suspending, operating,
resting.
"""

import sys

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from tests.kernel.actors import Hand, Report
from tests.kernel.resting import Resting
from tests.kernel.stage import DEDUP_SECONDS
from tests.kernel.state import Database
from tests.kernel.subscribing import DECLARED
from tests.kernel.writing import WRITERS

_WORKERS = 3


class KernelMachine(Resting, RuleBasedStateMachine):
    """The kernel's functions, step by step, against the model."""

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Somebody subscribes before anything is written, or not."""
        how_many = data.draw(st.sampled_from([2, 1, 0]))
        if how_many == 1:
            self._subscribe(self.hands[0], {"a.exact": DECLARED["a.exact"][0]})
        elif how_many:
            self.subscribe(data)
            self.subscribe(data)
        self.settle_all()

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
        self._answer_all()
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
            alone = not alone and bool(answer.more["poison"])


def machine_for(database: Database) -> type[KernelMachine]:
    """The machine over this database."""
    return type("KernelMachine", (KernelMachine,), {"database": database})


def open_database(url: str) -> Database:
    """Connections enough for the machine."""
    return Database(url, workers=_WORKERS, writers=WRITERS, dedup_seconds=DEDUP_SECONDS)
