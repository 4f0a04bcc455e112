"""The plan of the pump: its next exchange, given what is due, running, finished and free.

Pure: time comes in as monotonic seconds, decisions go out. No loop, no clock, no database.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

from runtime.settings import Settings
from runtime.store import Delivery, ExchangeAnswer, Look, Report
from runtime.wakeups import Path, Reachability
from runtime.wakeups.polling import Pace
from runtime.worker.hints import Hints
from runtime.worker.lanes import Lane, Lanes
from runtime.worker.leases import Leases
from runtime.worker.outbox import Outbox
from runtime.worker.poison import PoisonMessages, PoisonTurns
from runtime.worker.sleep import FIRST_SECONDS, Phase, Sleep

_RESCAN_PAUSE_SECONDS = 0.05
_RECALL_PAUSE_SECONDS = 0.05
# A third of the time after which the database takes a sleeper for gone, whatever the pace of the sweeps.
_BEAT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Wait:
    """The decision to do nothing for so many seconds, unless something happens."""

    seconds: float


class Plan:
    """Every decision of one pump.

    Args:
        settings: paces and limits.
        lanes: the subscriptions of this worker by their numbers.
        reach: which push paths were asked for.
        poison_messages: whether to take any; a quarantine worker takes nothing else, and is woken by the time alone.
        now: the moment it begins, in monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        lanes: dict[int, Lane],
        reach: Reachability,
        *,
        now: float,
        poison_messages: PoisonMessages = PoisonMessages.ALSO,
        random: Random | None = None,
    ) -> None:
        self.lanes = Lanes(lanes, now, settings.lease_seconds)
        self.leases = Leases(settings.lease_seconds, now)
        self.outbox = Outbox(settings.request_seconds)
        self.reach = reach
        self.stopping = False
        self.unsettled: frozenset[int] = frozenset()
        self.unannounced = False
        self.renews_async = True
        self._settings = settings
        self._pace = Pace(settings.poll_fast_seconds, settings.poll_slow_seconds, random or Random())
        self._cursors: Mapping[str, int] = {}
        self._sleep = Sleep(now, slow_seconds=settings.poll_slow_seconds)
        self.is_quarantine = poison_messages is PoisonMessages.ONLY
        self._poison = PoisonTurns(poison_messages, settings.lease_seconds, now)
        self._hints = Hints(now, is_deaf=self.is_quarantine)
        self._silent_until = now
        self._filled: set[int] = set()
        self._rescan_at: float | None = None
        self._rescanned_at = now - _RESCAN_PAUSE_SECONDS
        self._due_at: float | None = now
        self._poll_at = math.inf if self.is_quarantine else now
        self._recalled = False
        self._recall_after = now
        self._sweep_at = now + settings.sweep_seconds
        self._beat_at = now + min(settings.sweep_seconds, _BEAT_SECONDS)
        self._settle_at = now
        self._settle_seconds = FIRST_SECONDS
        self._nonces: deque[str] = deque()
        self._doubted_until = now
        self._saw_nothing = False

    @property
    def held(self) -> dict[tuple[int, int], Delivery]:
        """The deliveries that this worker holds leases on."""
        return self.leases.held

    @property
    def is_idle(self) -> bool:
        """Whether the last look was at everything and found nothing, and nothing is left here to be done."""
        return self._saw_nothing and not (self.held or self.outbox or self.unsettled or self._poison.waits)

    @property
    def phase(self) -> Phase:
        """How close to sleep the worker is."""
        return self._sleep.phase

    # What happens

    def wake(self, message: int | None = None, *, tells_due: bool = False) -> bool:
        """Take a hint, perhaps of what is due; returns whether there is any reason to look."""
        return self._hints.give(message, tells_due=tells_due)

    def recall(self) -> None:
        """Something that runs here is to end: ask what, though there may be no room for more."""
        self._recalled = True

    def sweep(self, now: float) -> None:
        """Look at everything once, soon: something may have been missed."""
        self._hints.give()
        self._rescan_at = self._due_at = now
        self._saw_nothing = False

    def live(self, path: Path, now: float) -> bool:
        """A push path is proved; returns whether polling ends."""
        ended_polling = self.reach.live(path)
        self.sweep(now)
        return ended_polling

    def lost(self, path: Path, now: float) -> bool:
        """A push path went; returns whether polling begins, at once."""
        begins_polling = self.reach.lost(path)
        if begins_polling:
            self._sleep.rouse()
            self._pace.active()
            self._poll_at = now
        return begins_polling

    def prove(self, nonce: str) -> None:
        """A push path wants this nonce sent back. Each exchange carries one, and none takes another's place."""
        if nonce not in self._nonces:
            self._nonces.append(nonce)

    def finished(self, reports: Iterable[Report]) -> None:
        """Attempts ended: their slots are free, and they are reported with the next exchange."""
        for report in reports:
            if report.answer is None:
                self.outbox.add(report)
            else:
                # Reported in a transaction of the handler's own: look for what was behind it.
                self.leases.let_go(report.delivery)
                self.sweep(self._rescanned_at)
            self.lanes[report.delivery.subscription].note_finished()

    def lapsing(self, now: float) -> list[Delivery]:
        """Give up the leases that end soon, since no renewal has come through; returns their deliveries."""
        return self.leases.lapsing(now, self.outbox.places)

    def forget(self, delivery: Delivery) -> None:
        """Let the lease of a delivery lapse that cannot be reported."""
        self._let_go(delivery)

    def put_back(self, look: Look, now: float, *, by: int) -> None:
        """Carry in smaller parts what an exchange carried that could not be applied for something in it.

        Args:
            by: how many times smaller.
        """
        self.outbox.put_back(look, by)
        if look.nonce is not None:
            self.prove(look.nonce)
        if look.beat:
            self._sweep_at = now
        if look.renew:
            self.leases.renewed_at = now - self._settings.lease_seconds / 3
        self.sweep(now)

    def put_off(self, until: float) -> None:
        """Do not look before then, unless there is something to report: the store refuses any look."""
        self._silent_until = until
        self.sweep(until)

    def begin_anew(self, now: float) -> None:
        """Forget what the database said before: it was reset, and its ids may begin anew."""
        self._hints.forget()
        self._cursors = {}
        self.sweep(now)

    def allow(self, limits: Mapping[int, int], now: float) -> None:
        """Change how many of each may run at once, and look for what there is room for now."""
        for number, limit in limits.items():
            self.lanes[number].limit = limit
        self.sweep(now)

    # What to do

    def decide(self, now: float) -> Look | Wait:
        """Return the next exchange, or how long there is none."""
        if now < self._silent_until and not self.outbox:
            return Wait(self._silent_until - now)
        if (delayed := self.outbox.take_delayed(now)) is not None:
            return Look.of([delayed])
        settling = bool(self.unsettled) and now >= self._settle_at
        polling = self._polls(now) and now >= self._poll_at and not self.stopping
        sweeping = now >= self._sweep_at or bool(self._nonces)
        beating = sweeping or now >= self._beat_at
        hinted = self._hints.is_due(now)
        due = (self._due_at is not None and now >= self._due_at) or (hinted and self._hints.tells_due)
        rescan = self._rescan_at is not None and now >= max(
            self._rescan_at, self._rescanned_at + _RESCAN_PAUSE_SECONDS
        )
        looking = self.reach.is_live and self._sleep.is_due(now)
        renewing = self.leases.is_due(now)
        recalled = self._recalled and now >= self._recall_after
        want = {} if self.stopping else self._want(now)
        bounds = self.outbox.bounds
        if bounds.is_narrow:
            # Leases are renewed apart from reports, which may fail once more.
            want = {} if renewing else self.outbox.share(want, is_alone=self._poison.is_alone)
        # Taking needs room; without any, a hint waits until a report makes some.
        more = not self._filled.isdisjoint(want)
        is_alone = self._poison.is_alone
        poisoned = is_alone and self._poison.waits
        taking = bool(want) and (hinted or more or due or rescan or polling or looking or poisoned)
        if not (self.outbox or renewing or taking or beating or settling or recalled):
            return Wait(self._rest(now, bool(want)))

        full = sweeping or polling or rescan or is_alone or (looking and self.phase is Phase.DROWSY)
        waits = bounds.is_narrow and (renewing or bool(want))
        reports = [] if waits else list(self.outbox.take())
        look = Look.of(
            reports,
            renew=self._to_renew(reports) if renewing else [],
            want=want,
            cursors=None if full else self._cursors,
            due=full or due,
            alone=is_alone,
            beat=beating,
            nonce=self._nonces.popleft() if self._nonces else None,
            settle=bool(self.unsettled),
            max_bytes=bounds.answer_bytes if want else None,
        )
        if self._may_sleep(look, looking):
            look.sleep, look.fence = True, self._sleep.fence
            # Most likely there is something: the database answers whether to sleep on only if there is not.
            look.stay = self._hints.is_given and self.phase is Phase.ASLEEP
            if reports and now >= self._rescanned_at + _RESCAN_PAUSE_SECONDS:
                # The last work there was is reported: after one look at everything it may sleep at once.
                look.cursors, look.due = None, True
        if want:
            self._hints.follow()
        if recalled:
            # Forged cancellations cost a few looks a second.
            self._recalled, self._recall_after = False, now + _RECALL_PAUSE_SECONDS
        if renewing:
            self.leases.renewed_at = now
        if sweeping:
            self._sweep_at = now + self._settings.sweep_seconds
        if beating:
            self._beat_at = now + min(self._settings.sweep_seconds, _BEAT_SECONDS)
        if look.cursors is None and want:
            self._rescan_at, self._rescanned_at = None, now
        return look

    def absorb(self, look: Look, answer: ExchangeAnswer, *, sent_at: float, now: float) -> None:
        """Take note of what the database answered to a look sent at `sent_at`."""
        was_asleep = self.phase is Phase.ASLEEP
        announced = self._hints.is_followed or self._hints.is_given
        self.unannounced = bool(was_asleep and answer.taken and look.beat and not announced)
        if self.unannounced:
            # A nonce finds out a path that keeps silent; until then, poll rather than wait for the next sweep.
            self._doubted_until = now + self._settings.nonce_deadline_seconds
            self._poll_at = now
        for report in (*look.done, *look.failed):
            self._let_go(report.delivery)
        ends_at = sent_at + self._settings.lease_seconds
        for delivery in answer.taken:
            self.leases.take(delivery, ends_at)
            self._hints.remember(delivery.place[0])
        if answer.taken and len(self.held) == len(answer.taken):
            self.leases.renewed_at = sent_at
        for delivery in () if answer.repeated else look.renew:
            if delivery.place not in answer.lost:
                self.leases.renew(delivery, ends_at)
        self.lanes.note_exchange(look, answer, sent_at=sent_at, now=now)
        self.outbox.bounds.lengthen(self.lanes.road.seconds)
        self._saw_nothing = (
            look.cursors is None and look.due and not look.alone and look.want.keys() == self.lanes.keys()
            and not (answer.taken or answer.filled or answer.look_again or answer.repeated)
        )  # fmt: skip
        if self.outbox.note(look, now - sent_at):
            self.sweep(now)
        self._poison.note(look, answer, now)
        if answer.repeated:
            # A repeated answer lists what was taken, and nothing else: ask for the rest again.
            self._sleep.stay_awake(now)
            self.sweep(now)
            return
        self._note_settling(look, answer, now)
        self._note_taking(look, answer, now)
        self._sleep.note(
            look, answer, now,
            is_wakeable=self.reach.is_live and not self.stopping,
            is_settling=bool(self.unsettled),
            is_hinted=self._hints.is_given,
        )  # fmt: skip

    def _let_go(self, delivery: Delivery) -> None:
        self.leases.let_go(delivery)
        self.outbox.drop_delayed(delivery)

    def _want(self, now: float) -> dict[int, int]:
        if self._poison.allow_others(now, is_busy=bool(self.held)):
            return self.lanes.rooms(self.outbox.behind, renews_async=self.renews_async)
        # A look for poison messages takes one of any subscription.
        return (
            {number: 1 for number, lane in self.lanes.items() if lane.limit} if self._poison.is_alone else {}
        )

    def _to_renew(self, reports: Iterable[Report]) -> list[Delivery]:
        reported = {report.delivery.place for report in reports}
        if not self.outbox.bounds.is_narrow:
            # The reports that still wait follow at once.
            reported |= self.outbox.places
        return self.leases.to_renew(
            reported, lambda each: self.renews_async or self.lanes[each.subscription].in_threads
        )

    def _may_sleep(self, look: Look, looking: bool) -> bool:
        """Only a worker with room for something new sleeps, and only where a push path can wake it."""
        reported = len(look.done) + len(look.failed)
        return (
            self.reach.is_live
            and not self.stopping
            and not look.alone
            and not self.unsettled
            and self._filled.isdisjoint(look.want)
            and bool(look.want)
            and (looking or self.phase is not Phase.AWAKE or len(self.held) <= reported)
        )

    def _note_settling(self, look: Look, answer: ExchangeAnswer, now: float) -> None:
        if not look.settle:
            return
        if answer.unsettled != self.unsettled:
            self._settle_seconds = FIRST_SECONDS
            self.sweep(now)
        self.unsettled = answer.unsettled
        self._settle_at = now + self._settle_seconds
        self._settle_seconds = min(self._settle_seconds * 1.5, 0.5)

    def _note_taking(self, look: Look, answer: ExchangeAnswer, now: float) -> None:
        if not look.alone:
            self._filled = (self._filled - look.want.keys()) | answer.filled
        if look.want and not look.alone:
            self._cursors = answer.cursors
        if look.cursors is not None and len(answer.taken) < sum(look.want.values()):
            # Ids below the cursor may have committed late, and what is due was not looked at.
            self._rescan_at = now
        if look.due:
            # The rest of a crowd follows at once; deliveries that could not be taken are not asked for in a tight loop.
            pause = 0.0 if answer.taken else 0.001
            self._due_at = None if answer.next_due is None else now + max(answer.next_due, pause)
        for report in look.failed:
            if report.delay is not None:
                self._expect_due(now + report.delay)
        if answer.limited is not None:
            self._expect_due(now + max(answer.limited, 0.001))
        if answer.look_again:
            self._rescan_at = now + FIRST_SECONDS
        self._hints.note(now, taken=bool(answer.taken))
        if answer.taken or look.done:
            self._pace.active()
        if self._polls(now) and not self.is_quarantine:
            self._poll_at = now + self._pace.next_seconds()

    def _polls(self, now: float) -> bool:
        """Whether no push path can be relied on: none is live, or work was found that none announced."""
        return not self.reach.is_live or now < self._doubted_until

    def _expect_due(self, at: float) -> None:
        self._due_at = at if self._due_at is None else min(self._due_at, at)

    def _rest(self, now: float, has_room: bool) -> float:
        moments = [self._sweep_at, self._beat_at, self.outbox.delayed_until, self._poison.next_change(now)]
        if self._recalled:
            moments.append(self._recall_after)
        if self.held:
            moments.append(self.leases.due_at)
        if self.unsettled:
            moments.append(self._settle_at)
        if has_room:
            if self._due_at is not None:
                moments.append(self._due_at)
            if self._rescan_at is not None:
                moments.append(max(self._rescan_at, self._rescanned_at + _RESCAN_PAUSE_SECONDS))
            if self._hints.is_given:
                moments.append(self._hints.after)
            if self._polls(now):
                moments.append(self._poll_at)
            if self.reach.is_live and self.phase is not Phase.ASLEEP:
                moments.append(self._sleep.look_at)
        return max(0.0, min(moments) - now)
