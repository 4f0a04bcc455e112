"""How does a worker go to sleep without missing what is written meanwhile? It looks once more than it needs to.

Marked asleep in the database it is announced to; but who began to write before the mark cannot have seen it. So it
looks on, ever more slowly, until a look at everything came back empty that began after all of those had ended. Who
began to write while it was being called may have left it at that call; so it looks on after a call in the same way.
"""

from enum import Enum

FIRST_SECONDS = 0.005
CAP_SECONDS = 0.05
_PATIENCE_SECONDS = 3.0


class Phase(Enum):
    """How close to sleep the worker is, as the database knows it."""

    AWAKE = "awake"
    DROWSY = "drowsy"
    ASLEEP = "asleep"


class Sleep:
    """The phase, and when the next look of its own accord is due.

    Args:
        now: the moment it begins, in monotonic seconds.
        slow_seconds: the pace of looking while a foreign transaction stays open for long.

    Attributes:
        fence: the transaction that everybody who could not see the mark began before; None before it is known.
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
        """Whether it should look though nothing woke it: nobody announces anything to one who is awake."""
        return self.phase is not Phase.ASLEEP and now >= self.look_at

    def rouse(self) -> None:
        """Be awake, with no look of its own planned anew."""
        self.phase, self.fence = Phase.AWAKE, None

    def stay_awake(self, now: float) -> None:
        """There is work: begin to fall asleep all over again, a little later."""
        self.rouse()
        self._since, self._pause = now, FIRST_SECONDS
        self.look_at = now + FIRST_SECONDS

    def look_soon(self, now: float) -> None:
        """Nothing came of a look that had no reason to lie down: the next one has."""
        self.rouse()
        self.look_at = now + FIRST_SECONDS

    def lie_down(self, now: float) -> None:
        """Marked only now. Who began to write before cannot have seen it, so nothing is proved yet: look at once."""
        self.stay_awake(now)
        self.phase, self.look_at = Phase.DROWSY, now

    def doze(self, now: float, fence: str) -> None:
        """Somebody may still write who has not seen the mark: look on."""
        self.phase, self.fence = Phase.DROWSY, fence
        self.look_later(now)

    def fall_asleep(self, fence: str) -> None:
        """It is proved that there is nothing, and that everybody knows whom to wake."""
        self.phase, self.fence = Phase.ASLEEP, fence

    def look_later(self, now: float) -> None:
        """Plan the next look, later than the last one."""
        self.look_at = now + self._pause
        self._pause = min(2 * self._pause, CAP_SECONDS)
        if now - self._since > _PATIENCE_SECONDS:
            # A long foreign transaction: no reason to hurry.
            self._pause = self._slow_seconds
