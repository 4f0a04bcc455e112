"""What do handlers of long work do? They store steps, wait, are suspended, ask again, and undo."""

from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.kernel.actors import STRICT, Busy, Hand, Report, Serialization
from tests.kernel.driver import Taken
from tests.kernel.kept import NO_RETURN, UNDO, Wait
from tests.kernel.model import HOUR, Draft
from tests.kernel.subscribing import DECLARED
from tests.kernel.working import Working

_WAIT = "select public.stream_wait(message => $1, subscription => $2, lease => $3, waits => $4)"
_KEYS = {"k.b": "k.b", "k.c": "k.c", "k.*": "k.c", "x.>": "x.y.z"}
"""The patterns that handlers wait for, and a key that fits each."""

patterns = st.sampled_from([None, *_KEYS, "k.c"])
"""None: a sleep."""
names = st.lists(st.sampled_from(["one", "two", "three", NO_RETURN]), min_size=1, max_size=3, unique=True)
verbs = st.sampled_from([*["store", "wait", "answer"] * 2, "sweep", "die", "advance"])
timeouts = st.sampled_from([None, HOUR, 3 * HOUR])


class Suspending(Working):
    """The steps of handlers between taking and reporting."""

    @rule(data=st.data(), verbs=st.lists(verbs, min_size=2, max_size=6))
    def work_long(self, data: st.DataObject, verbs: list[str]) -> None:
        """Handlers of long work come some steps on."""
        for verb in verbs:
            if verb == "store":
                self.store(data, data.draw(names), data.draw(st.booleans()), data.draw(st.booleans()))
            elif verb == "wait":
                self.wait(data, data.draw(patterns), data.draw(st.booleans()), data.draw(timeouts))
            elif verb == "answer":
                self.answer(data, data.draw(st.sampled_from(["at once", "at once", "commit", "rollback"])))
            elif verb == "die":
                self.die(data, data.draw(st.booleans()))
            elif verb == "advance" and self._time_can_pass():
                self.advance(data.draw(st.sampled_from([1, 3])))
            elif verb == "sweep":
                self.sweep(data)

    def store(self, data: st.DataObject, names: list[str], together: bool, late: bool) -> None:
        """G12: a handler stores steps, one by one or by one call; or a frozen one does."""
        hand = self._busy_hand(data)
        if hand is None:
            return
        self._begin()
        taken = self._drawn(data, list(hand.held.values()))
        if late and hand.stale:
            taken = self._drawn(data, hand.stale[-6:])
        with suppress(Busy):
            self._store(taken, names, together=together)
        self._look()

    def _busy_hand(self, data: st.DataObject) -> Hand | None:
        """A worker whose handlers run; where there is none, one takes what comes."""
        for tries in range(2):
            able = [
                hand
                for hand in self.hands
                if not hand.pending and any(self.model.holds(taken) for taken in hand.held.values())
            ]
            if able:
                return self._one_of(data, able)
            if tries == 0:
                hand = self._free_hand(data, started=False)
                if hand.pending is None:
                    self._subscribe(hand, {name: DECLARED[name][0] for name in ("a.exact", "c.ordered")})
                    self._settle(hand)
                    self.send([{"key": "k.a"}, {"key": "k.a"}], 0, False)
                    with suppress(Busy):
                        self._exchange(hand, want=dict.fromkeys(sorted(hand.lanes), 2), due=True)
        return None

    def die(self, data: st.DataObject, stores: bool) -> None:
        """Deliveries die that have finished steps; what takes them next undoes those, as far as it gets."""
        for hand in self.hands:
            if hand.pending is None and hand.held:
                able = [taken for place, taken in hand.held.items() if self.model.undos.get(place)]
                with suppress(Busy):
                    self._exchange(hand, [Report(taken, "dead") for taken in able[:3]])
        self.serve(data)
        for hand in self.hands:
            for place, taken in list(hand.held.items()):
                if stores and hand.pending is None and UNDO in self.model.steps.get(place, {}):
                    self._begin()
                    with suppress(Busy):
                        self._store(taken, sorted(self.model.undos[place])[:1], together=False)
                    self._look()

    def _store(self, taken: Taken, names: list[str], *, together: bool) -> None:
        steps = []
        for name in names:
            self.tokens += 1
            undo = {"step": name, "arguments": {}} if name in ("one", "two") else None
            steps.append(taken.report(name=name, key="", occurrence=1, value=self.tokens, undo=undo))
        if UNDO in self.model.steps.get((taken.id, taken.subscription), {}):
            # An undo is a step of the second phase.
            steps = [step | {"name": f"{UNDO}.{step['name']}", "value": True, "undo": None} for step in steps]
        given = [{name: value for name, value in step.items() if value is not None} for step in steps]
        answers = (
            self._operate("stream_steps", given) if together else [self._store_one(step) for step in steps]
        )
        delivery = self.model.holds(taken)
        for step, answer in zip(steps, answers, strict=True):
            told = self.model.keep(delivery, step["name"], step["value"], undo=step["undo"] is not None)
            assert answer == told, f"G12: step {step} was told {answer}, should be {told}"

    def _store_one(self, step: dict[str, Any]) -> Any:
        return self._operate("stream_step", **step)

    def wait(self, data: st.DataObject, pattern: str | None, narrow: bool, timeout: int | None) -> None:
        """A handler waits, perhaps beside a writer that began before and commits after; it is suspended, or goes on."""
        hand = self._busy_hand(data)
        if hand is None:
            return
        taken = self._drawn(data, [taken for taken in hand.held.values() if self.model.holds(taken)])
        beside = data.draw(st.sampled_from([None, None, "read committed", *STRICT]))
        writer = self.writers[0]
        if beside is not None and writer.isolation is None:
            self._begin()
            self._open_writer(writer, beside)
            with suppress(Busy, Serialization):
                self._write(writer, self._drafts([{"key": _KEYS[pattern or "k.c"]}]), "send")
            self._look()
        self._wait(hand, taken, self._wait_of(taken, pattern, narrow, timeout))
        for _ in range(data.draw(st.integers(0, 5))):
            with suppress(Busy):
                self._exchange(hand, want=dict.fromkeys(sorted(hand.lanes), 1), due=True)
        if beside is not None and writer.isolation is not None:
            self.close(data, "commit")

    def _wait_of(self, taken: Taken, pattern: str | None, narrow: bool, timeout: int | None) -> Wait:
        """The next wait of a handler, whose place tells it from the others."""
        place = (taken.id, taken.subscription)
        known = [*self.model.steps.get(place, {}), *self.model.waits.get(place, {})]
        name = f"w{sum(name.startswith(('wait.', 'w')) for name in known)}"
        token = None
        if narrow and pattern is not None:
            self.tokens += 1
            token = self.tokens
        seconds = timeout if pattern is not None else timeout or HOUR
        until = None if seconds is None else self.model.now + seconds
        return Wait(name, pattern, token, taken.id, until)

    def _wait(self, hand: Hand, taken: Taken, new: Wait) -> None:
        """It runs from the top: first the waits of earlier attempts, then the new one."""
        place = (taken.id, taken.subscription)
        delivery = self.model.holds(taken)
        if delivery is None or UNDO in self.model.steps.get(place, {}):
            return
        self._begin()
        asked = [*self.model.waits.get(place, {}).values(), new]
        wires = [self._wire(wait) for wait in asked]
        try:
            answer = self._run(
                self.database.operator.fetchval(_WAIT, taken.id, taken.subscription, taken.lease, wires)
            )
        except Busy:
            return
        assert answer["held"], f"G3: {taken} holds its lease, and may not wait"
        for wait, told in zip(asked, answer["outcomes"], strict=True):
            self._check_outcome(wait, told, self.model.wait(delivery, wait))
        self._look()
        names = list(self.model.waits.get(place, {}))
        if not names:
            return
        seconds = answer["seconds"]
        sleeps = all(wait.pattern is None for wait in self.model.waits[place].values())
        delay = round((seconds or 0) / HOUR) * HOUR if sleeps else 0
        with suppress(Busy):
            self._exchange(hand, [Report(taken, "suspended", delay, waits=names)])

    def _check_outcome(
        self, wait: Wait, told: dict[str, Any] | None, expected: dict[str, Any] | None
    ) -> None:
        if expected is None:
            assert told is None, f"G13: {wait} was told {told}, and goes on"
        else:
            assert told is not None, f"G13: {wait} goes on, should be {expected}"
            assert told.get("id") == expected.get("answer"), (
                f"G13: {wait} was told {told}, should be {expected}"
            )

    def _wire(self, wait: Wait) -> dict[str, Any]:
        wire = {"name": wait.name, "key": "", "occurrence": 1, "pattern": wait.pattern, "filter": wait.token}
        return wire if wait.until is None else wire | {"seconds": wait.until - self.model.now}

    def answer(self, data: st.DataObject, how: str) -> None:
        """What a handler waits for is written, at once or by a transaction that stays open while others look."""
        waits = [
            wait
            for _, each in sorted(self.model.waits.items())
            for wait in each.values()
            if wait.pattern is not None
        ]
        if not waits:
            return
        draft = self._answer_to(data.draw(st.sampled_from(waits)))
        writer = self.writers[1]
        self._begin()
        if how == "at once" or writer.isolation is not None:
            with suppress(Busy):
                self._look(self._send(self.database.operator, [draft], self.model.step, {})[0])
            return
        self._open_writer(writer, "read committed")
        with suppress(Busy):
            self._write(writer, [draft], "send")
        self._look()
        for hand in self.hands:
            if hand.started is not None and hand.pending is None:
                self._work(data, hand, "sweep")
        self._begin()
        self._close(writer, how)

    def _answer_to(self, wait: Wait) -> Draft:
        [draft] = self._drafts([{"key": _KEYS[wait.pattern or ""]}])
        return draft if wait.token is None else Draft(wait.token, draft.key)

    def _answer_all(self) -> None:
        """Everything comes that anybody waits for."""
        for place, waits in sorted(self.model.waits.items()):
            for wait in list(waits.values()):
                if wait.pattern is not None and place in self.model.deliveries:
                    self._begin()
                    draft = self._answer_to(wait)
                    self._look(self._send(self.database.operator, [draft], self.model.step, {})[0])

    @staticmethod
    def _drawn(data: st.DataObject, among: list[Taken]) -> Taken:
        return among[data.draw(st.integers(0, len(among) - 1))]
