"""The way of a worker to sleep without missing what is written meanwhile.

While a worker is marked asleep in the database, writers announce messages to it. But a transaction that began before
the mark cannot have seen it. So the worker looks on, ever more slowly, until a look at everything came back empty that
began after all of those transactions had ended. A transaction that began while the worker was being woken may rely on
that call; so the worker looks on after a call in the same way.
"""

from enum import Enum

from runtime.store import ExchangeAnswer, Look

FIRST_SECONDS = 0.005
CAP_SECONDS = 0.05
_PATIENCE_SECONDS = 3.0


class Phase(Enum):
    """How close to sleep the worker is, as the database knows it."""

    AWAKE = "awake"
    DROWSY = "drowsy"
    ASLEEP = "asleep"


class Sleep:
    """The phase, and when the next look is due that nothing calls for.

    Args:
        now: the moment it begins, in monotonic seconds.
        slow_seconds: the pace of looking while a foreign transaction stays open for long.

    Attributes:
        fence: every transaction that could not see the mark began before this one; None before it is known.
        look_at: when to look again, while not asleep.
    """

    def __init__(self, now: float, *, slow_seconds: float) -> None:
        self.phase = Phase.AWAKE
        self.fence: str | None = None
        self.look_at = now
        self._slow_seconds = slow_seconds
        self._pause = FIRST_SECONDS
        self._since = now

    def is_due(self, now: float) -> bool:
        """Whether to look though nothing woke it: writers announce nothing to a worker that is awake."""
        return self.phase is not Phase.ASLEEP and now >= self.look_at

    def note(
        self,
        look: Look,
        answer: ExchangeAnswer,
        now: float,
        *,
        is_wakeable: bool,
        is_settling: bool,
        is_hinted: bool,
    ) -> None:
        """Take note of an answer.

        Args:
            is_wakeable: whether a push path can wake the worker, and it is to go on.
            is_settling: whether a new subscription is not settled yet.
            is_hinted: whether a hint came that no look has followed.
        """
        # Only a look at everything, from the lowest id, proves that there is nothing.
        proves_emptiness = look.cursors is None and look.due and not is_hinted
        if answer.taken or answer.filled or look.alone:
            self.stay_awake(now)
        elif not look.want or not is_wakeable:
            self.rouse()
        elif not look.sleep and is_settling:
            self.rouse()
            self.look_later(now)
        elif not look.sleep:
            self.look_soon(now)
        elif answer.fence is None:
            self.lie_down(now)
        elif answer.quiet and (self.phase is Phase.ASLEEP or proves_emptiness):
            self.fall_asleep(answer.fence)
        else:
            self.doze(now, answer.fence)

    def rouse(self) -> None:
        """Be awake, with no look of its own planned anew."""
        self.phase, self.fence = Phase.AWAKE, None

    def stay_awake(self, now: float) -> None:
        """There is work: begin to fall asleep all over again, a little later."""
        self.rouse()
        self._since, self._pause = now, FIRST_SECONDS
        self.look_at = now + FIRST_SECONDS

    def look_soon(self, now: float) -> None:
        """The look found nothing and did not ask to sleep; the next one will."""
        self.rouse()
        self.look_at = now + FIRST_SECONDS

    def lie_down(self, now: float) -> None:
        """Marked only now: transactions that began before cannot have seen it, so look again at once."""
        self.stay_awake(now)
        self.phase, self.look_at = Phase.DROWSY, now

    def doze(self, now: float, fence: str) -> None:
        """A transaction that has not seen the mark may still write: look on."""
        self.phase, self.fence = Phase.DROWSY, fence
        self.look_later(now)

    def fall_asleep(self, fence: str) -> None:
        """It is proved that there is nothing, and that every writer sees the mark."""
        self.phase, self.fence = Phase.ASLEEP, fence

    def look_later(self, now: float) -> None:
        """Plan the next look, later than the last one."""
        self.look_at = now + self._pause
        self._pause = min(2 * self._pause, CAP_SECONDS)
        if now - self._since > _PATIENCE_SECONDS:
            # A long foreign transaction: no reason to hurry.
            self._pause = self._slow_seconds
