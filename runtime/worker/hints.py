"""The wake-ups that a worker has not followed yet."""

from collections import deque

from runtime.worker.sleep import CAP_SECONDS, FIRST_SECONDS

_RECENT = 2000


class Hints:
    """Whether a hint calls for a look. Hints can be lost, late, doubled and forged.

    Args:
        now: the moment it begins, in monotonic seconds.
        is_deaf: whether no hint is ever followed.

    Attributes:
        is_given: whether there is a hint that no look has followed.
        is_followed: whether the last look that took followed a hint.
        tells_due: whether a hint that no look has followed tells of something that is due.
        after: when it may be followed.
    """

    def __init__(self, now: float, *, is_deaf: bool) -> None:
        self.is_given = not is_deaf
        self.is_followed = self.tells_due = False
        self.after = now
        self._is_deaf = is_deaf
        self._pause = FIRST_SECONDS
        self._recent: set[int] = set()
        self._recent_order: deque[int] = deque(maxlen=_RECENT)

    def give(self, message: int | None = None, *, tells_due: bool = False) -> bool:
        """Take a hint; returns whether there is any reason to look."""
        if message is not None and message in self._recent:
            # The message was taken already: the slower of two paths tells of it again.
            return False
        self.is_given = not self._is_deaf
        self.tells_due |= tells_due
        return self.is_given

    def is_due(self, now: float) -> bool:
        """Whether a hint is to be followed now."""
        return self.is_given and now >= self.after

    def follow(self) -> None:
        """Note that a look takes."""
        self.is_given, self.is_followed = False, self.is_given
        self.tells_due = False

    def note(self, now: float, *, taken: bool) -> None:
        """Note what came of the look. A flood of forged hints costs a few looks a second."""
        if taken:
            self.after, self._pause = now, FIRST_SECONDS
        elif self.is_followed:
            self.after = now + self._pause
            self._pause = min(2 * self._pause, CAP_SECONDS)

    def remember(self, message: int) -> None:
        """Note a message that was taken: another hint of it is not worth a look."""
        if message not in self._recent:
            if len(self._recent_order) == self._recent_order.maxlen:
                self._recent.discard(self._recent_order[0])
            self._recent_order.append(message)
            self._recent.add(message)

    def forget(self) -> None:
        """Forget what was taken: the database gives its ids anew."""
        self._recent.clear()
        self._recent_order.clear()
