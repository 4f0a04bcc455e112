"""Given what is due, running, finished and free: what does the pump do next?

Pure: time comes in as monotonic seconds, decisions go out. No loop, no clock, no database.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from runtime.settings import Settings
from runtime.store import Delivery, ExchangeAnswer, Report
from runtime.wakeups import Path, Reachability
from runtime.wakeups.polling import Pace
from runtime.worker.exchange_bounds import ExchangeBounds
from runtime.worker.sleep import CAP_SECONDS, FIRST_SECONDS, Phase, Sleep

# Renewal comes at a third of a lease's time; when only so much of it is left, none has come through.
LAPSING_SHARE = 0.2
_ASIDE_FIRST_SECONDS, _ASIDE_CAP_SECONDS = 0.25, 30.0
_RESCAN_PAUSE_SECONDS = 0.05
_RECALL_PAUSE_SECONDS = 0.05
_PREFETCH_SECONDS = 0.05
_PREFETCH_LIMIT = 400
_RECENT = 2000
# A third of the time after which the database takes a sleeper for gone, whatever the pace of the sweeps.
_BEAT_SECONDS = 20.0


class PoisonMessages(StrEnum):
    """Whether this worker takes deliveries that have crashed their worker twice. They are taken alone."""

    ALSO = "also"
    NEVER = "never"
    ONLY = "only"


@dataclass(slots=True)
class Lane:
    """One subscription's share of this worker.

    Attributes:
        limit: how many of its handlers may run at once.
        in_threads: whether they run in threads, so that a blocked loop does not hold them up.
        held: deliveries taken whose attempts have not ended.
        pace: how many it finishes in a second, lately.
        takes_ahead: whether it takes more than it can begin with at once; what all workers share is not held back.
    """

    limit: int
    in_threads: bool = False
    held: int = 0
    pace: float = 0.0
    finished: int = 0
    takes_ahead: bool = True

    def room(self) -> int:
        """How many more to take: free slots, and what the measured pace drains in a moment."""
        if self.limit == 0:
            return 0
        ahead = min(_PREFETCH_LIMIT, int(self.pace * _PREFETCH_SECONDS)) if self.takes_ahead else 0
        return max(0, self.limit + ahead - self.held)


@dataclass(slots=True, kw_only=True)
class Look:
    """One exchange to be made: what it reports, and how it looks."""

    done: list[Report] = field(default_factory=list)
    failed: list[Report] = field(default_factory=list)
    renew: list[Delivery] = field(default_factory=list)
    want: dict[int, int] = field(default_factory=dict)
    cursors: Mapping[str, int] | None = None
    due: bool = False
    alone: bool = False
    sleep: bool = False
    stay: bool = False
    fence: str | None = None
    beat: bool = False
    nonce: str | None = None
    settle: bool = False
    max_bytes: int | None = None

    @property
    def reports(self) -> list[Report]:
        """Everything it reports."""
        return [*self.done, *self.failed]

    def fields(self) -> dict[str, object]:
        """What an `Exchange` needs beside the pump's own numbers."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class DelayedReport:
    """A report that failed alone and waits by itself, while others go on.

    Attributes:
        tries: how often it has failed alone.
        due_at: when it is tried again.
    """

    report: Report
    tries: int = 0
    due_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for so many seconds, unless something happens."""

    seconds: float


class Plan:
    """Every decision of one pump.

    Args:
        settings: paces and limits.
        lanes: the subscriptions of this worker by their numbers.
        reach: which push paths were asked for.
        poison_messages: whether to take what has crashed its worker twice; a quarantine worker takes nothing else, and
            is woken by the time alone.
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
        self.lanes = lanes
        self.reach = reach
        self.stopping = False
        self.held: dict[tuple[int, int], Delivery] = {}
        self.unsettled: frozenset[int] = frozenset()
        self.unannounced = False
        self.renews_async = True
        self._given_up: set[tuple[int, int]] = set()
        self._ends_at: dict[tuple[int, int], float] = {}
        self._recent: set[int] = set()
        self._recent_order: deque[int] = deque(maxlen=_RECENT)
        self._settings = settings
        self._reports: deque[Report] = deque()
        self._pace = Pace(settings.poll_fast_seconds, settings.poll_slow_seconds, random or Random())
        self._cursors: Mapping[str, int] = {}
        self._drowsing = Sleep(now, slow_seconds=settings.poll_slow_seconds)
        self.is_quarantine = poison_messages is PoisonMessages.ONLY
        self._passes_poison = poison_messages is PoisonMessages.NEVER
        self._hinted = not self.is_quarantine
        self._follows_hint = False
        self._hint_after = now
        self._hint_pause = FIRST_SECONDS
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
        self._renewed_at = now
        self._settle_at = now
        self._settle_seconds = FIRST_SECONDS
        self._nonces: deque[str] = deque()
        self._doubted_until = now
        self._has_poison = False
        self._poison_since = now
        self._is_alone = False
        self._runs_poison = False
        self._paced_at = now
        self._saw_nothing = False
        self.narrowing = ExchangeBounds(settings.request_seconds)
        self._aside: dict[tuple[int, int], DelayedReport] = {}
        self._reported_last = self._is_trimmed = False

    @property
    def is_idle(self) -> bool:
        """Whether the last look was at everything and found nothing, and nothing is left here to be done."""
        return self._saw_nothing and not (self.held or self._reports or self.unsettled or self._has_poison)

    @property
    def phase(self) -> Phase:
        """How close to sleep the worker is."""
        return self._drowsing.phase

    # What happens

    def wake(self, message: int | None = None) -> bool:
        """A hint came; returns whether there is any reason to look."""
        if message is not None and message in self._recent:
            # It was taken already: the slower of two paths tells of it again.
            return False
        self._hinted = not self.is_quarantine
        return self._hinted

    def recall(self) -> None:
        """Something that runs here is to end: ask what, though there may be no room for more."""
        self._recalled = True

    def sweep(self, now: float) -> None:
        """Something may have been missed: look at everything once, soon."""
        self._hinted = not self.is_quarantine
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
            self._drowsing.rouse()
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
            self._reports.append(report)
            lane = self.lanes[report.delivery.subscription]
            lane.held -= 1
            lane.finished += 1

    def give_up(self, place: tuple[int, int]) -> None:
        """A lease is lost: its attempt runs on, but is not renewed any more."""
        if place in self.held:
            self._given_up.add(place)

    def lapsing(self, now: float) -> list[Delivery]:
        """Give up the leases that end soon, since no renewal has come through; returns whose attempts must end."""
        soon = now + self._settings.lease_seconds * LAPSING_SHARE
        ending = {report.delivery.place for report in self._reports} | self._given_up
        found = [
            delivery
            for place, delivery in self.held.items()
            if place not in ending and self._ends_at.get(place, soon) < soon
        ]
        self._given_up.update(delivery.place for delivery in found)
        return found

    def forget(self, delivery: Delivery) -> None:
        """A delivery cannot be reported: let its lease lapse."""
        self._let_go(delivery)

    def put_back(self, look: Look, now: float, *, by: int) -> None:
        """Nothing of an exchange was applied for something in it: what it carried is carried in smaller parts.

        Args:
            by: how many times smaller.
        """
        reports = look.reports
        if reports:
            self.narrowing.shrink_reports(len(reports), sum(map(_weight, reports)), by)
        elif look.want:
            self.narrowing.shrink_taking(sum(look.want.values()), by)
        self._reports.extendleft(reversed(reports))
        if look.nonce is not None:
            self.prove(look.nonce)
        if look.beat:
            self._sweep_at = now
        if look.renew:
            self._renewed_at = now - self._settings.lease_seconds / 3
        self.sweep(now)

    def set_aside(self, report: Report, now: float) -> DelayedReport:
        """A report failed alone, by no fault of its own perhaps: it waits by itself, longer each time."""
        aside = self._aside.setdefault(report.delivery.place, DelayedReport(report))
        aside.tries += 1
        aside.due_at = now + min(_ASIDE_CAP_SECONDS, _ASIDE_FIRST_SECONDS * 2.0**aside.tries)
        return aside

    def put_off(self, until: float) -> None:
        """The store refuses to be looked at: not again before then, unless there is something to report."""
        self._silent_until = until
        self.sweep(until)

    def begin_anew(self, now: float) -> None:
        """The database knows nothing of this worker any more, and its ids may begin anew."""
        self._recent.clear()
        self._recent_order.clear()
        self._cursors = {}
        self.sweep(now)

    def allow(self, limits: Mapping[int, int], now: float) -> None:
        """Change how many of each may run at once, and look for what there is room for now."""
        for number, limit in limits.items():
            self.lanes[number].limit = limit
        self.sweep(now)

    def renewable(self, now: float) -> bool:
        """Whether leases should be renewed by now."""
        return bool(self.held) and now >= self._renewed_at + self._settings.lease_seconds / 3

    def renewal(self, now: float, ending: Iterable[Report]) -> Look:
        """An exchange that renews what runs and does nothing else."""
        self._renewed_at = now
        return Look(renew=self._to_renew(ending))

    # What to do

    def decide(self, now: float) -> Look | Wait:
        """Return the next exchange, or how long there is none."""
        if now < self._silent_until and not self._reports:
            return Wait(self._silent_until - now)
        if self._aside and (waited := self._waited_long_enough(now)):
            return waited
        settling = bool(self.unsettled) and now >= self._settle_at
        polling = self._polls(now) and now >= self._poll_at and not self.stopping
        sweeping = now >= self._sweep_at or bool(self._nonces)
        beating = sweeping or now >= self._beat_at
        due = self._due_at is not None and now >= self._due_at
        rescan = self._rescan_at is not None and now >= max(
            self._rescan_at, self._rescanned_at + _RESCAN_PAUSE_SECONDS
        )
        hinted = self._hinted and now >= self._hint_after
        looking = self.reach.is_live and self._drowsing.is_due(now)
        renewing = self.renewable(now)
        recalled = self._recalled and now >= self._recall_after
        want = {} if self.stopping else self._want(now)
        if self.narrowing.is_narrow:
            # Leases are renewed apart: what is reported may come to nothing once more.
            want = {} if renewing else self._narrowed(want)
        # Taking needs room; without any, a hint waits until a report makes some.
        more = not self._filled.isdisjoint(want)
        poisoned = self._is_alone and self._has_poison
        taking = bool(want) and (hinted or more or due or rescan or polling or looking or poisoned)
        if not (self._reports or renewing or taking or beating or settling or recalled):
            return Wait(self._rest(now, bool(want)))

        full = sweeping or polling or rescan or self._is_alone or (looking and self.phase is Phase.DROWSY)
        waits = self.narrowing.is_narrow and (renewing or bool(want))
        reports = [] if waits else list(self._next_reports())
        look = Look(
            done=[report for report in reports if report.outcome is None],
            failed=[report for report in reports if report.outcome is not None],
            renew=self._to_renew(reports) if renewing else [],
            want=want,
            cursors=None if full else self._cursors,
            due=full or due,
            alone=self._is_alone,
            beat=beating,
            nonce=self._nonces.popleft() if self._nonces else None,
            settle=bool(self.unsettled),
            max_bytes=self.narrowing.answer_bytes if want else None,
        )
        if self._may_sleep(look, looking):
            look.sleep, look.fence = True, self._drowsing.fence
            # Most likely there is something: whether it may sleep on is asked only if there is not.
            look.stay = self._hinted and self.phase is Phase.ASLEEP
            if reports and now >= self._rescanned_at + _RESCAN_PAUSE_SECONDS:
                # The last of what there was: one look at everything, and it may sleep at once.
                look.cursors, look.due = None, True
        if want:
            self._hinted, self._follows_hint = False, self._hinted
        if recalled:
            # Forged ones cost a few looks a second.
            self._recalled, self._recall_after = False, now + _RECALL_PAUSE_SECONDS
        if renewing:
            self._renewed_at = now
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
        announced = self._follows_hint or self._hinted
        self.unannounced = bool(was_asleep and answer.taken and look.beat and not announced)
        if self.unannounced:
            # A path that keeps silent is found out by its nonce; until then nothing waits for the next sweep.
            self._doubted_until = now + self._settings.nonce_deadline_seconds
            self._poll_at = now
        for report in (*look.done, *look.failed):
            self._let_go(report.delivery)
        ends_at = sent_at + self._settings.lease_seconds
        for delivery in answer.taken:
            # It may be one that lapsed here and is still running: then its old attempt ends unheeded.
            place = delivery.place
            self._given_up.discard(place)
            self.held[place] = delivery
            self._ends_at[place] = ends_at
            self.lanes[delivery.subscription].held += 1
            self._remember(place[0])
        if answer.taken and len(self.held) == len(answer.taken):
            self._renewed_at = sent_at
        for delivery in () if answer.repeated else look.renew:
            if delivery.place in self.held and delivery.place not in answer.lost:
                self._ends_at[delivery.place] = ends_at
        self._note_paces(now)
        self._saw_nothing = (
            look.cursors is None and look.due and not look.alone and look.want.keys() == self.lanes.keys()
            and not (answer.taken or answer.filled or answer.look_again or answer.repeated)
        )  # fmt: skip
        if self.narrowing.is_narrow or self._is_trimmed:
            self._note_narrowness(look, now - sent_at, now)
        if answer.repeated:
            # Only what was taken is told a second time; everything else is to be asked again.
            self._is_alone = False
            self._runs_poison = look.alone and bool(answer.taken)
            self._drowsing.stay_awake(now)
            self.sweep(now)
            return
        self._note_settling(look, answer, now)
        self._note_taking(look, answer, now)
        self._note_sleep(look, answer, now)

    def _waited_long_enough(self, now: float) -> Look | None:
        """The report that is tried again by itself now, if any."""
        aside = min(self._aside.values(), key=lambda each: each.due_at)
        if now < aside.due_at:
            return None
        aside.due_at = math.inf
        report = aside.report
        return Look(done=[report]) if report.outcome is None else Look(failed=[report])

    def _narrowed(self, want: dict[int, int]) -> dict[int, int]:
        """What is taken while exchanges carry less: by turns with reports, so that neither waits for the other."""
        self._is_trimmed = False
        if not want or (self._reports and not self._reported_last):
            self._reported_last = bool(self._reports)
            return {}
        self._reported_last = False
        shared = want if self._is_alone else self.narrowing.share(want)
        self._is_trimmed = shared != want
        return shared

    def _note_narrowness(self, look: Look, seconds: float, now: float) -> None:
        if look.want or look.done or look.failed:
            self.narrowing.grow(
                reported=bool(look.done or look.failed), wanted=bool(look.want), seconds=seconds
            )
        if self._is_trimmed:
            # It did not ask for all there was room for.
            self._is_trimmed = False
            self.sweep(now)

    def _remember(self, message: int) -> None:
        if message not in self._recent:
            if len(self._recent_order) == self._recent_order.maxlen:
                self._recent.discard(self._recent_order[0])
            self._recent_order.append(message)
            self._recent.add(message)

    def _let_go(self, delivery: Delivery) -> None:
        place = delivery.place
        current = self.held.get(place)
        if current is not None and current.lease == delivery.lease:
            del self.held[place]
            del self._ends_at[place]
            self._given_up.discard(place)
        if self._aside:
            self._aside.pop(place, None)

    def _next_reports(self) -> Iterator[Report]:
        """As many reports as one exchange carries; at least one, where there is any."""
        size, narrowing = 0, self.narrowing
        for count in range(min(len(self._reports), narrowing.reports)):
            size += _weight(self._reports[0])
            if size > narrowing.report_bytes and count:
                return
            yield self._reports.popleft()

    def _want(self, now: float) -> dict[int, int]:
        self._is_alone = (self._has_poison or self.is_quarantine) and not self.held
        if self._is_alone:
            # What has crashed its worker twice runs with nothing beside it.
            return {number: 1 for number, lane in self.lanes.items() if lane.limit}
        self._runs_poison = self._runs_poison and bool(self.held)
        if self.is_quarantine or self._runs_poison or (self._has_poison and self._holds_back(now)):
            return {}
        return {
            number: room
            for number, lane in self.lanes.items()
            # On a loop that is blocked nothing new could begin.
            if (room := lane.room()) > 0 and (self.renews_async or lane.in_threads)
        }

    def _holds_back(self, now: float) -> bool:
        """Poison messages wait for a moment when nothing runs; if none comes, taking pauses, a lease's time at most."""
        lease_times = (now - self._poison_since) // self._settings.lease_seconds
        return lease_times % 2 == 1

    def _to_renew(self, reports: Iterable[Report]) -> list[Delivery]:
        # What waits to be reported is reported at once, but for exchanges that carry less.
        waiting = () if self.narrowing.is_narrow else self._reports
        ending = {report.delivery.place for report in (*reports, *waiting)}
        ending |= self._given_up
        return [
            delivery
            for place, delivery in self.held.items()
            if place not in ending and (self.renews_async or self.lanes[delivery.subscription].in_threads)
        ]

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

    def _note_paces(self, now: float) -> None:
        elapsed = now - self._paced_at
        if elapsed < _PREFETCH_SECONDS / 5:
            return
        for lane in self.lanes.values():
            lane.pace = 0.5 * lane.pace + 0.5 * lane.finished / elapsed
            lane.finished = 0
        self._paced_at = now

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
        self._note_poison(look, answer, now)
        if look.want and not look.alone:
            self._cursors = answer.cursors
        if look.cursors is not None and len(answer.taken) < sum(look.want.values()):
            # Ids below the cursor may have committed late, and what is due was not looked at.
            self._rescan_at = now
        if look.due:
            self._due_at = None if answer.next_due is None else now + max(answer.next_due, 0.001)
        for report in look.failed:
            if report.delay is not None:
                self._expect_due(now + report.delay)
        if answer.limited is not None:
            self._expect_due(now + max(answer.limited, 0.001))
        if answer.look_again:
            self._rescan_at = now + FIRST_SECONDS
        if answer.taken:
            self._hint_after, self._hint_pause = now, FIRST_SECONDS
        elif self._follows_hint:
            # Hints can be forged: a flood of them costs a few looks a second.
            self._hint_after = now + self._hint_pause
            self._hint_pause = min(2 * self._hint_pause, CAP_SECONDS)
        if answer.taken or look.done:
            self._pace.active()
        if self._polls(now) and not self.is_quarantine:
            self._poll_at = now + self._pace.next_seconds()

    def _polls(self, now: float) -> bool:
        """Whether no push path can be relied on: none is live, or work was found that none announced."""
        return not self.reach.is_live or now < self._doubted_until

    def _expect_due(self, at: float) -> None:
        self._due_at = at if self._due_at is None else min(self._due_at, at)

    def _note_poison(self, look: Look, answer: ExchangeAnswer, now: float) -> None:
        if look.alone:
            self._has_poison = self._runs_poison = bool(answer.taken)
            self._is_alone = False
        elif look.due and look.want and not self._passes_poison:
            if answer.has_poison and not self._has_poison:
                self._poison_since = now
            self._has_poison = answer.has_poison

    def _note_sleep(self, look: Look, answer: ExchangeAnswer, now: float) -> None:
        drowsing = self._drowsing
        if answer.taken or answer.filled or look.alone:
            drowsing.stay_awake(now)
        elif not (look.want and self.reach.is_live) or self.stopping:
            drowsing.rouse()
        elif not look.sleep and self.unsettled:
            drowsing.rouse()
            drowsing.look_later(now)
        elif not look.sleep:
            drowsing.look_soon(now)
        elif answer.fence is None:
            drowsing.lie_down(now)
        elif answer.quiet and (self.phase is Phase.ASLEEP or self._proves_emptiness(look)):
            drowsing.fall_asleep(answer.fence)
        else:
            drowsing.doze(now, answer.fence)

    def _proves_emptiness(self, look: Look) -> bool:
        """Only a look at everything, from the lowest id, proves that there is nothing."""
        return look.cursors is None and look.due and not self._hinted

    def _rest(self, now: float, has_room: bool) -> float:
        moments = [self._sweep_at, self._beat_at]
        if self._aside:
            moments.append(min(each.due_at for each in self._aside.values()))
        if self._recalled:
            moments.append(self._recall_after)
        if self.held:
            moments.append(self._renewed_at + self._settings.lease_seconds / 3)
        if self.unsettled:
            moments.append(self._settle_at)
        if has_room:
            if self._due_at is not None:
                moments.append(self._due_at)
            if self._rescan_at is not None:
                moments.append(max(self._rescan_at, self._rescanned_at + _RESCAN_PAUSE_SECONDS))
            if self._hinted:
                moments.append(self._hint_after)
            if self._polls(now):
                moments.append(self._poll_at)
            if self.reach.is_live and self.phase is not Phase.ASLEEP:
                moments.append(self._drowsing.look_at)
        if self._has_poison:
            lease = self._settings.lease_seconds
            # Never so little that no clock would show it.
            moments.append(now + max(0.001, lease - (now - self._poison_since) % lease))
        return max(0.0, min(moments) - now)


def _weight(report: Report) -> int:
    """How much a report adds to the body of an exchange, about."""
    return sum(map(len, report.emits)) if report.outcome is None else len(report.traceback or "")
