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

    def _gather(self, name: str) -> bool:
        """New workers serve this one only, and take what there is; whether all of them fell asleep."""
        for hand in self.hands.copy():
            self._replace(hand)
        for hand in self.hands:
            self._subscribe(hand, {name: DECLARED[name][0]})
            self._settle(hand)
        self._pause(name, "resume")
        for _ in range(5):
            self.rest(10, "done")
            if all(hand.asleep for hand in self.hands):
                return True
        return False

    @precondition(lambda self: not self._open())
    @rule(how=st.sampled_from(["expired", "unseen", "delayed"]))
    def come_upon(self, how: str) -> None:
        """All rest and have nothing else to do when what they must not miss comes in one certain order."""
        name = "c.ordered" if how == "expired" else "a.exact"
        if not self._gather(name):
            return
        if how == "expired":
            waiting = {
                d.message.draft.key for d in self.model.deliveries.values() if d.subscription.name == name
            }
            for key in sorted({"k.a", "k.b"} - waiting):
                self.send([*[{"key": key, "expires_in": 0}] * 3, {"key": key}], 0, False)
            self._doze_all(6, 3)
        elif how == "unseen":
            # Written while all are awake, so announced to nobody; committed when all would like to sleep.
            for hand in self.hands:
                self._exchange(hand)
            writer = self.writers[0]
            self._begin()
            self._open_writer(writer, "read committed")
            self._write(writer, self._drafts([{"key": "k.a"}]), "send")
            self._doze_all(4, 3)
            self._begin()
            self._close(writer, "commit")
        else:
            self.send([{"key": "k.a", "delay": HOUR}], 0, False)
            self._doze_all(4, 3)
            self.advance(1)

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
