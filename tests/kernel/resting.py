"""Does anybody sleep who should not? Workers come to rest while something is held back, and then it comes."""

from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.kernel.actors import Busy, Report
from tests.kernel.model import HOUR
from tests.kernel.operating import Operating
from tests.kernel.subscribing import DECLARED


class Resting(Operating):
    """The steps around sleep."""

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
                    self._subscribe(hand, {"c.ordered": DECLARED["c.ordered"][0]})
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
