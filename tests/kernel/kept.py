"""What does a handler keep beside its delivery? The model's steps, waits and undos: what is stored stays as it is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.keys import matches
from tests.kernel.driver import Taken
from tests.kernel.state import Place, State

if TYPE_CHECKING:
    from tests.kernel.model import Delivery, Draft, Message

UNDO = "undo"
NO_RETURN = "no_return"
_WAIT = "wait."
FAR = 10**9
"""Seconds that no example reaches: a wait without an end is put off by a hundred years."""


@dataclass
class Wait:
    """What a handler waits for that has not come."""

    name: str
    pattern: str | None
    """None: a time."""
    token: int | None
    """The value of the message that ends it; None for any."""
    since: int
    until: int | None
    is_loose: bool = False
    """Its delivery has ended: nobody asks for it, and it may go at any time."""

    def is_ended_by(self, id_: int, draft: "Draft") -> bool:
        """Whether a message is one that it waits for."""
        return (
            self.pattern is not None
            and id_ > self.since
            and matches(self.pattern, draft.key)
            and self.token in (None, draft.token)
        )


class Kept:
    """Steps and waits, by the delivery that keeps them. They outlive it."""

    now: int
    messages: "dict[int, Message]"
    pruned: "dict[int, Message]"
    deliveries: "dict[Place, Delivery]"

    def __init__(self) -> None:
        self.steps: dict[Place, dict[str, Any]] = {}
        self.undos: dict[Place, set[str]] = {}
        """The finished steps of a place that are to be undone if it dies."""
        self.waits: dict[Place, dict[str, Wait]] = {}

    def copy_kept(self, other: "Kept") -> None:
        """Give a fork its own."""
        other.steps = {place: dict(steps) for place, steps in self.steps.items()}
        other.undos = {place: set(names) for place, names in self.undos.items()}
        other.waits = {place: dict(waits) for place, waits in self.waits.items()}

    # What handlers do

    def keep(self, delivery: "Delivery | None", name: str, value: Any, *, undo: bool) -> dict[str, Any]:
        """A handler stores a step: what it must be told. Without the lease, the delivery is None (G3)."""
        if delivery is None:
            return {"held": False}
        steps = self.steps.setdefault(delivery.place, {})
        delivery.is_heavy = True
        if name in steps:
            return {"held": True, "earlier": [steps[name]]}
        steps[name] = value
        if undo:
            self.undos.setdefault(delivery.place, set()).add(name)
        return {"held": True}

    def wait(self, delivery: "Delivery", wait: Wait) -> dict[str, Any] | None:
        """A handler comes to a wait: how it has ended, or None while it goes on."""
        place = delivery.place
        kept: dict[str, Any] | None = self.steps.get(place, {}).get(_WAIT + wait.name)
        if kept is not None:
            return kept
        known = self.waits.setdefault(place, {}).setdefault(wait.name, wait)
        answers = [id_ for id_, m in self.messages.items() if known.is_ended_by(id_, m.draft)]
        if answers:
            kept = {"answer": min(answers)}
        elif known.until is not None and known.until <= self.now:
            kept = {"timeout": True}
        else:
            return None
        self._end_wait(place, wait.name, kept)
        return kept

    def suspend(self, delivery: "Delivery", names: Iterable[str]) -> None:
        """It waits for these, in no worker."""
        waits = self.waits.get(delivery.place, {})
        delivery.is_suspended = delivery.is_heavy = True
        delivery.awaited = tuple(names)
        # A sleep has no writer that could miss it.
        delivery.is_unsettled = any(n not in waits for n in delivery.awaited) or any(
            wait.pattern is not None for wait in waits.values()
        )

    def _end_wait(self, place: Place, name: str, outcome: Mapping[str, Any]) -> None:
        self.waits[place].pop(name)
        self.steps.setdefault(place, {})[_WAIT + name] = dict(outcome)

    # What follows when a delivery ends

    def undo_first(self, delivery: "Delivery", reason: str) -> str | None:
        """A delivery dies: it changes phase if it has steps to undo; else the reason for which it is buried."""
        steps = self.steps.get(delivery.place, {})
        if UNDO in steps:
            return str(steps[UNDO])
        if not self.undos.get(delivery.place) or NO_RETURN in steps:
            return reason
        steps[UNDO] = reason
        delivery.attempts = delivery.crashes = 0
        delivery.lease, delivery.due = None, self.now
        delivery.is_suspended = delivery.is_unsettled = False
        self.loosen(delivery.place)
        return None

    def loosen(self, place: Place) -> None:
        """Nobody asks for its waits any more."""
        for wait in self.waits.get(place, {}).values():
            wait.is_loose = True

    def forget_undone(self, place: Place) -> None:
        """A redrive does again what was undone."""
        steps = self.steps.get(place, {})
        if UNDO not in steps:
            return
        for name in sorted(self.undos.get(place, ())):
            if UNDO + "." + name in steps:
                del steps[name]
                self.undos[place].discard(name)
                steps["undone"] = True
        for name in [n for n in steps if n == UNDO or n.startswith(UNDO + ".")]:
            del steps[name]

    def forget_steps(self, place: Place) -> None:
        """A replay begins anew; or the message is gone, and no dead letter keeps them."""
        self.steps.pop(place, None)
        self.undos.pop(place, None)
        self.waits.pop(place, None)

    # What is read from the database, and held to the rules

    def adopt(self, state: State, *, begun: int) -> None:
        """Writers and sweeps end waits at a moment of their own: by a message that fits, once, and then it goes on.

        An exchange ends those of what it takes whose time has come; the one that is looked at began at this step.
        """
        ended: set[Place] = set()
        for place, waits in self.waits.items():
            for name, wait in list(waits.items()):
                if (place, name) in state.waits:
                    continue
                outcome = state.steps.get(place, {}).get(_WAIT + name)
                if outcome == {"timeout": True}:
                    self._end_by_time(place, wait, begun)
                    ended.add(place)
                elif outcome is not None:
                    answer = {**self.messages, **self.pruned}.get(outcome.get("answer"))
                    assert answer is not None, (
                        f"G13: {wait} of {place} ended by {outcome}, which is not there"
                    )
                    assert wait.is_ended_by(answer.id, answer.draft), f"G13: {wait} ended by {answer}"
                    self._end_wait(place, name, outcome)
                    ended.add(place)
                else:
                    assert wait.is_loose or place not in self.deliveries, f"G13: {wait} of {place} is lost"
                    del waits[name]
        for delivery in self.deliveries.values():
            if delivery.place in state.deliveries:
                self._adopt_delivery(delivery, state, was_called=delivery.place in ended)

    def _end_by_time(self, place: Place, wait: Wait, begun: int) -> None:
        is_over = wait.until is not None and wait.until <= self.now
        assert is_over, f"G13: {wait} of {place} ended before its time"
        missed = [m for i, m in self.messages.items() if wait.is_ended_by(i, m.draft) and m.committed < begun]
        assert not missed or wait.is_loose, f"G13: {wait} of {place} ended by its time after {missed}"
        self._end_wait(place, wait.name, {"timeout": True})

    def _adopt_delivery(self, delivery: "Delivery", state: State, *, was_called: bool) -> None:
        place, row = delivery.place, state.deliveries[delivery.place]
        # What goes on, or was put off beside a wait, comes with its steps from then on.
        delivery.is_heavy = delivery.is_heavy or (
            row["heavy"] and bool(self.steps.get(place) or self.waits.get(place))
        )
        if not delivery.is_suspended or delivery.lease is not None:
            if was_called and delivery.lease is None and delivery.due is not None and row["lease"] is None:
                # Its retry comes sooner.
                delivery.due = min(delivery.due, self.now)
            return
        waits = self.waits.get(place, {})
        was_unsettled, delivery.is_unsettled = delivery.is_unsettled, place in state.unsettled
        if delivery.is_unsettled:
            return
        missed = [
            wait
            for wait in waits.values()
            if any(wait.is_ended_by(i, m.draft) for i, m in self.messages.items())
        ]
        assert not missed, f"G13: {missed} of {place} go on, and nothing will look at them again"
        if any(name not in waits for name in delivery.awaited):
            delivery.due = self.now if delivery.due is None else min(delivery.due, self.now)
        elif was_unsettled:
            untils = [wait.until for wait in waits.values() if wait.until is not None]
            delivery.due = min(untils, default=self.now + FAR)

    def compare_kept(self, state: State) -> None:
        """G12: each step is there, once, as it was stored; and nothing is kept that nobody stored."""
        for place, name in state.waits:
            assert name in self.waits.get(place, {}), f"G13: {place} waits for {name}, and nobody asked"
        for place in self.steps.keys() | state.steps.keys():
            mine, theirs = self.steps.get(place, {}), state.steps.get(place, {})
            assert mine.keys() == theirs.keys(), f"G12: steps of {place}: {theirs}, should be {mine}"
            for name, value in mine.items():
                if name not in (UNDO, "undone"):
                    assert theirs[name] == value, (
                        f"G12: step {name} of {place} is {theirs[name]}, was {value}"
                    )

    def check_told(self, delivery: "Delivery", taken: Taken) -> None:
        """G12: whoever takes a delivery is told every step that was stored, unchanged."""
        told = {name: value for name, _, _, value, *_ in taken.steps or ()}
        for name, wait in list(self.waits.get(delivery.place, {}).items()):
            if told.get(_WAIT + name) == {"timeout": True}:
                # The exchange that has ended it is still open.
                self._end_by_time(delivery.place, wait, self.step)
        steps = self.steps.get(delivery.place, {}) if delivery.is_heavy else {}
        if not delivery.is_heavy:
            assert not told, f"{delivery} was told {told}"
            return
        assert told.keys() == steps.keys(), f"G12: {delivery} was told {told}, stored are {steps}"
        for name, value in steps.items():
            if name.startswith(_WAIT):
                assert told[name].get("id") == value.get("answer"), (
                    f"G13: {name} ended by {value}, told {told[name]}"
                )
            elif name not in (UNDO, "undone"):
                assert told[name] == value, (
                    f"G12: step {name} of {delivery}: told {told[name]}, stored {value}"
                )

    def answers(self, message: "Message") -> bool:
        """Whether somebody waits for this message."""
        return any(
            wait.is_ended_by(message.id, message.draft)
            for waits in self.waits.values()
            for wait in waits.values()
        )

    def has_begun(self, place: Place) -> bool:
        """Whether an attempt has kept a step or come to a wait: then it goes on though its message has expired."""
        return bool(self.steps.get(place) or self.waits.get(place))
