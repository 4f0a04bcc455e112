"""What do operators do? They pause, replay, redrive, discard, prune, remove; and a reader sets processed itself."""

from contextlib import suppress

import asyncpg
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.kernel.actors import Busy
from tests.kernel.model import HOUR
from tests.kernel.suspending import Suspending


class Operating(Suspending):
    """The steps of operators."""

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
            assert (answer["pruned"], answer["expired"]) == self.model.prune(
                older_than, before, self._locked()
            )
        self._look(announced=before.announced)

    @precondition(lambda self: any(hand.started is not None and not hand.pending for hand in self.hands))
    @rule(data=st.data(), retention=st.sampled_from([None, 2 * HOUR, 4 * HOUR]))
    def maintain(self, data: st.DataObject, retention: int | None) -> None:
        """Any worker offers to keep the tables small; the oldest one does: it forgets dedup_keys, and prunes."""
        self._begin()
        hand = self._free_hand(data)
        started = {each: hand.started for each, hand in enumerate(self.hands) if hand.started is not None}
        elected = self.hands[min(started, key=lambda each: started[each])]
        before = self.database.look()
        with suppress(Busy):
            answer = self._operate("stream_maintain", hand.worker.id, retention)
            assert answer["elected"] == (hand is elected), "K12: not the oldest worker keeps the tables small"
            if hand is elected:
                self.model.forget()
                gone = (0, 0) if retention is None else self.model.prune(retention, before, self._locked())
                assert (answer["pruned"], answer["expired"]) == gone, "K12: pruned otherwise"
        self._look(announced=before.announced)

    @precondition(lambda self: self.numbers and not self._open())
    @rule(data=st.data(), orphaned=st.booleans())
    def remove(self, data: st.DataObject, orphaned: bool) -> None:
        """An operator removes a subscription, perhaps one that workers still serve."""
        name = data.draw(st.sampled_from(sorted(self.numbers)))
        number = self.numbers[name]
        if orphaned:
            for hand in [each for each in self.hands if number in each.lanes]:
                self._replace(hand)
        self._begin()
        is_served = any(number in hand.lanes for hand in self.hands)
        try:
            answer = self._operate("stream_remove", name)
        except asyncpg.ObjectInUseError:
            assert is_served, "removal is refused, though no worker serves it"
        else:
            assert not is_served, "removed under a worker that serves it"
            assert answer["waiting"] == self.model.remove(number)
            del self.numbers[name]
            for hand in self.hands:
                # Taken when it still served the subscription.
                for place in [place for place in hand.held if place[1] == number]:
                    hand.stale.append(hand.held.pop(place))
        self._look()

    def mark(self, data: st.DataObject) -> None:
        """A reader of the table itself sets processed."""
        self._begin()
        id_ = data.draw(st.sampled_from(sorted(self.model.messages)))
        statement = "update public.consciousness_stream set processed = true where id = $1"
        with suppress(Busy):
            self._run(self.database.operator.execute(statement, id_))
            self.model.messages[id_].processed = True
        self._look()
