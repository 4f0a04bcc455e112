"""What do operators do? They pause, replay, redrive, discard, prune, and a reader sets processed itself."""

from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.kernel.actors import Busy
from tests.kernel.model import HOUR
from tests.kernel.working import Working


class Operating(Working):
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
