"""A delivery failed: should it be tried again, and when?"""

import math
from dataclasses import dataclass
from random import Random

from runtime.errors import DeclarationError, InvalidPayload


class Reject(Exception):
    """Raised by a handler: this delivery can never succeed, so it becomes a dead letter at once."""

    def __init__(self, why: str = "rejected by its handler") -> None:
        super().__init__(why)
        self.why = why


class RetryLater(Exception):
    """Raised by a handler: not now, but in `seconds`. It counts as no attempt.

    Raises:
        ValueError: `seconds` is negative, not finite or not a number.
    """

    def __init__(self, seconds: float, why: str = "asked to be tried again later") -> None:
        if not _is_delay(seconds):
            raise ValueError(f"RetryLater needs seconds of 0 or more, not {seconds!r}.")
        super().__init__(f"{why} (in {seconds:g} s)")
        self.seconds = float(seconds)
        self.why = why


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, how soon and after which errors a handler is tried again.

    Args:
        attempts: attempts in all, the first included; 1 means never again.
        first_seconds: the longest wait after the first failure; it doubles with each further one.
        cap_seconds: no wait is longer than this.
        on: only errors of these types are retried.
        never_on: errors of these types are not retried, even if `on` names them or a parent of theirs.

    Raises:
        DeclarationError: a figure makes no sense, or `on` or `never_on` holds something that is no exception.
    """

    attempts: int = 5
    first_seconds: float = 1.0
    cap_seconds: float = 300.0
    on: tuple[type[BaseException], ...] = (Exception,)
    never_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise DeclarationError(f"Retry(attempts=…) must be a whole number from 1, not {self.attempts!r}.")
        for name in ("first_seconds", "cap_seconds"):
            if not _is_delay(getattr(self, name)):
                raise DeclarationError(f"Retry({name}=…) must be 0 or more, not {getattr(self, name)!r}.")
        for name in ("on", "never_on"):
            types = getattr(self, name)
            if not isinstance(types, tuple) or not all(_is_exception_type(each) for each in types):
                raise DeclarationError(f"Retry({name}=…) must be a tuple of exception types: (ValueError,).")

    def decide(self, error: BaseException, attempt: int, random: Random) -> float | None:
        """Return the seconds to wait before the next attempt, or None for a dead letter.

        Args:
            error: what ended the attempt.
            attempt: which attempt it was, counted from 1.
            random: where the jitter comes from.
        """
        if isinstance(error, RetryLater):
            return error.seconds
        if isinstance(error, (Reject, InvalidPayload, *self.never_on)) or not isinstance(error, self.on):
            return None
        if attempt >= self.attempts:
            return None
        return backoff_seconds(attempt, first=self.first_seconds, cap=self.cap_seconds, random=random)


def backoff_seconds(attempt: int, *, first: float, cap: float, random: Random) -> float:
    """Full jitter: any moment up to the doubled delay, so a failed crowd does not return as one."""
    # The exponent is held below 1024, where a float ends: the ten-thousandth attempt must not overflow.
    doublings = min(max(attempt - 1, 0), 1000)
    return random.uniform(0, min(cap, first * 2.0**doublings))


def _is_delay(seconds: object) -> bool:
    """Whether this is a finite number of seconds, 0 or more."""
    return isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds >= 0


def _is_exception_type(candidate: object) -> bool:
    """Whether this can be raised."""
    return isinstance(candidate, type) and issubclass(candidate, BaseException)
