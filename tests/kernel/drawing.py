"""What does Hypothesis choose? Messages, outcomes, delays, and who acts next."""

from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from tests.kernel.actors import Hand, Report, Writer
from tests.kernel.kept import UNDO
from tests.kernel.model import HOUR, Draft
from tests.kernel.stage import Stage

Actor = TypeVar("Actor", Hand, Writer)

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


class Drawing(Stage):
    """Draws from what there is on the stage."""

    def _time_can_pass(self) -> bool:
        # What a transaction has locked could not be moved into the past.
        return not any(w.locks for w in self.writers) and not any(hand.pending for hand in self.hands)

    def _locked(self) -> set[int]:
        return {id_ for writer in self.writers for id_ in writer.locked}

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
            if UNDO in self.model.steps.get((report.taken.id, report.taken.subscription), {}):
                # In its second phase the handler does not run, so it cannot be done.
                report.outcome = "undone" if report.outcome == "done" else report.outcome
                report.emits = []
        return reports
