"""Retries of failed deliveries: whether there is another attempt, and when."""

import math
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeGuard

from runtime.agent.known_options import takes_known_options
from runtime.backoff import backoff_seconds
from runtime.errors import DeclarationError, InvalidKey, InvalidPayload, InvalidValue, NotAwaited, WrongCall
from runtime.tracebacks import members_of

# What another attempt cannot mend: this list decides, wherever such an error is raised.
_NEVER_RETRIED: Final = (InvalidPayload, InvalidValue, InvalidKey, NotAwaited, WrongCall)
# Python's own errors of code that has to be changed. A Retry that names one of them in `on` has it retried.
_FAULTS_OF_CODE: Final = (NameError, NotImplementedError, SyntaxError)
# A name that has no value yet may have one next time.
_NO_FAULT_OF_CODE: Final = (UnboundLocalError,)
LONGEST_SECONDS: Final = 366 * 86_400
MAX_ATTEMPTS: Final = 1_000_000_000


@takes_known_options
class Reject(Exception):
    """Raised by a handler: this delivery can never succeed, so it becomes a dead letter at once."""

    def __init__(self, why: str = "rejected by its handler") -> None:
        super().__init__(why)
        self.why = why


@takes_known_options
class RetryLater(Exception):
    """Raised by a handler: try again in `seconds`, at most a year. This does not count as an attempt.

    Raises:
        ValueError: `seconds` is negative or not a number; its text says why the handler wanted to wait.
    """

    def __init__(self, seconds: float, why: str = "asked to be tried again later") -> None:
        if not is_delay(seconds):
            raise ValueError(f"RetryLater needs seconds of 0 or more, not {seconds!r} ({why}).")
        self.seconds = float(min(seconds, LONGEST_SECONDS))
        super().__init__(f"{why} (in {self.seconds:g} s)")
        self.why = why


@takes_known_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, how soon and after which errors a handler is tried again.

    Args:
        attempts: attempts in all, the first included; 1 means no retry.
        first_seconds: the longest delay after the first failure; it doubles with each further one.
        cap_seconds: the longest delay of all.
        on: only errors of these types are retried. Faults of the code (`NameError`, `NotImplementedError`,
            `SyntaxError`) are retried only if it names them.
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
        whole = isinstance(self.attempts, int) and not isinstance(self.attempts, bool)
        if not whole or not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise DeclarationError(
                f"Retry(attempts=…) must be a whole number from 1 to {MAX_ATTEMPTS:,}, not {short_repr(self.attempts)}."
            )
        for name in ("first_seconds", "cap_seconds"):
            seconds = getattr(self, name)
            if not is_number(seconds) or not 0 <= seconds <= LONGEST_SECONDS:
                raise DeclarationError(
                    f"Retry({name}=…) must be a number of seconds, 0 or more and a year at most, not "
                    f"{said_of_seconds(seconds)}."
                )
        for name in ("on", "never_on"):
            types = getattr(self, name)
            if not isinstance(types, tuple) or not all(_is_exception_type(each) for each in types):
                raise DeclarationError(f"Retry({name}=…) must be a tuple of exception types: (ValueError,).")

    def decide(self, error: BaseException, attempt: int, random: Random) -> float | None:
        """Return the seconds to wait before the next attempt, or None for a dead letter.

        Each error in a group counts as if it were raised alone: if one of them is final the delivery is dead, else the
        longest delay that a `RetryLater` asks for applies, else the backoff.

        Args:
            error: of the attempt.
            attempt: which attempt it was, counted from 1.
            random: source of the jitter.
        """
        members = members_of(error)
        if any(self._is_final(each, error) for each in members):
            return None
        waits = [seconds for each in members if (seconds := later_seconds(each)) is not None]
        if waits:
            return max(waits)
        if attempt >= self.attempts:
            return None
        return backoff_seconds(attempt, first=self.first_seconds, cap=self.cap_seconds, random=random)

    def may_follow(self, error: BaseException) -> bool:
        """Whether another attempt may follow this error, as far as `on` and `never_on` say."""
        return not any(self._is_final(each, error) for each in members_of(error))

    def _is_final(self, error: BaseException, group: BaseException) -> bool:
        """Whether no attempt follows this error; `on` and `never_on` may name its group's type instead."""
        if later_seconds(error) is not None:
            return False
        if is_a(error, (Reject, *_NEVER_RETRIED)):
            return True
        named = tuple(each for each in self.on if each not in (Exception, BaseException))
        if is_a(error, _FAULTS_OF_CODE) and not is_a(error, (*_NO_FAULT_OF_CODE, *named)):
            return True
        is_named = is_a(error, self.never_on) or is_a(group, self.never_on)
        return is_named or not (is_a(error, self.on) or is_a(group, self.on))


def is_a(error: BaseException, types: tuple[type[BaseException], ...]) -> bool:
    """Whether an exception is of one of these types, even if a user's metaclass makes `issubclass` raise."""
    try:
        return issubclass(type(error), types)
    except BaseException:  # noqa: BLE001 - a metaclass of the user's may raise anything
        return any(each in types for each in type.mro(type(error)))


def later_seconds(error: BaseException) -> float | None:
    """Return the delay that a RetryLater asks for; None for any other error, or a broken RetryLater."""
    if not is_a(error, (RetryLater,)):
        return None
    try:
        seconds: Any = error.seconds  # type: ignore[attr-defined]
        return float(min(seconds, LONGEST_SECONDS)) if is_delay(seconds) else None
    except BaseException:  # noqa: BLE001 - a user's subclass may raise anything
        return None


def is_delay(seconds: object) -> bool:
    """Whether this is a finite number of seconds, 0 or more."""
    return is_number(seconds) and 0 <= seconds < math.inf


def is_number(given: object) -> TypeGuard[int | float]:
    """Whether this is a number; True and False are none."""
    return isinstance(given, (int, float)) and not isinstance(given, bool)


def short_repr(given: object) -> str:
    """Return the repr of a refused value: Python writes no number of more than 4,300 digits."""
    return f"{given!r}" if not isinstance(given, int) or given.bit_length() < 1000 else "a far larger one"


def said_of_seconds(given: object) -> str:
    """Return the repr of refused seconds; for a text, with the word that it is one."""
    return f"the text {given!r}" if isinstance(given, str) else short_repr(given)


def _is_exception_type(candidate: object) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseException)
