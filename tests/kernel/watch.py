"""Is something left lying that somebody should have taken? Wake-ups, timers, and what a sweep brings."""

from tests.kernel.actors import Hand
from tests.kernel.driver import Answer
from tests.kernel.model import Model
from tests.kernel.state import Place


class Watch:
    """What can be said of the actors together."""

    model: Model
    hands: list[Hand]

    def _touched(self) -> set[Place]:
        return {place for hand in self.hands if hand.pending for place in hand.pending.rows}

    def _sleepers(self, number: int) -> list[Hand] | None:
        """Those that wait for a wake-up, if nobody else will look."""
        serving = [hand for hand in self.hands if number in hand.lanes]
        return serving if serving and all(hand.asleep for hand in serving) else None

    def _check_wakeups(self) -> None:
        """K16: nothing can be taken while all who could take it sleep."""
        touched = self._touched()
        for number in self.model.subscriptions:
            if self._sleepers(number):
                waiting = [
                    d
                    for p in (False, True)
                    for d in self.model.takeable([number], poison=p)
                    if d.place not in touched
                ]
                assert not waiting, f"K16: all sleep beside {waiting}"

    def _check_timers(self, then: int) -> None:
        """Somebody has set a timer for each delayed delivery that comes due by then."""
        for delivery in self.model.deliveries.values():
            sleepers = self._sleepers(delivery.subscription.number)
            # Waits are looked at again within a second, until no writer can have missed them.
            due = self.model.now + 1 if delivery.is_unsettled else delivery.due
            if sleepers and delivery.lease is None and due is not None and self.model.now < due <= then:
                held_up = self.model.before(delivery) or self.model.beside(delivery)
                if not delivery.subscription.is_open or held_up:
                    continue
                timers = [hand.timer for hand in sleepers if hand.timer is not None]
                in_time = bool(timers) and min(timers) <= due + 1
                assert in_time, f"K6: nobody's timer is set for {delivery}"

    def _check_taking(
        self,
        before: Model,
        abandoned: set[Place],
        want: dict[int, int],
        answer: Answer,
        dropped: list[Place],
        *,
        alone: bool,
    ) -> None:
        """Nobody was in the way, so a sweep gets what there is: as much as it wanted, the first classes first."""
        for place in abandoned:
            before.crash(before.deliveries[place])
        got = [(t.id, t.subscription) for t in answer.taken] + dropped
        if alone:
            poison = before.takeable(want, poison=True)
            assert min(1, len(poison)) <= len(got) <= 1, f"K8: got {got} of {poison}"
            return
        for number, amount in want.items():
            if before.subscriptions[number].was_ordered:
                continue
            due = before.takeable([number], poison=False)
            mine = [place for place in got if place[1] == number]
            extra = sum(before.deliveries[place].is_unsettled for place in mine)
            assert min(amount, len(due)) <= len(mine) <= min(amount, len(due) + extra), f"K6: {mine} of {due}"
            fresh = sorted((-d.message.draft.priority, d.message.id) for d in due if d.due is None)
            taken = {place[0] for place in mine}
            firsts = [id_ for _, id_ in fresh][: len([id_ for _, id_ in fresh if id_ in taken])]
            assert set(firsts) <= taken, f"K6: not the first of {fresh}"
