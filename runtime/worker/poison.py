"""Poison messages: a message that crashed its worker twice is taken with nothing beside it."""

import math
from enum import StrEnum
from typing import Final

from runtime.store import ExchangeAnswer, Look

POISON_CRASHES: Final = 2
"""After so many crashes a message is taken alone; the kernel's functions count the same."""


class PoisonMessages(StrEnum):
    """Whether a worker takes poison messages: among others, never, or nothing else."""

    ALSO = "also"
    NEVER = "never"
    ONLY = "only"


class PoisonTurns:
    """When to take a poison message. Pure: time comes in as monotonic seconds.

    Args:
        policy: whether to take any.
        lease_seconds: how long a lease lasts.
        now: the moment it begins.

    Attributes:
        waits: whether a poison message waits to be taken.
        is_alone: whether the next look takes one, and nothing else.
        runs: whether one that was taken still runs.
    """

    def __init__(self, policy: PoisonMessages, lease_seconds: float, now: float) -> None:
        self.waits = False
        self.is_alone = False
        self._policy = policy
        self._lease_seconds = lease_seconds
        self._since = now
        self.runs = False

    def allow_others(self, now: float, *, is_busy: bool) -> bool:
        """Decide whether the next look takes a poison message; returns whether it may take others instead."""
        is_only = self._policy is PoisonMessages.ONLY
        self.is_alone = (self.waits or is_only) and not is_busy
        self.runs = self.runs and is_busy
        return not (self.is_alone or is_only or self.runs or (self.waits and self._holds_back(now)))

    def _holds_back(self, now: float) -> bool:
        """A poison message waits until nothing runs; if that never is, taking pauses, a lease's time at most."""
        return (now - self._since) // self._lease_seconds % 2 == 1

    def next_change(self, now: float) -> float:
        """When taking pauses or goes on."""
        if not self.waits:
            return math.inf
        # The least difference is one that every clock shows.
        return now + max(0.001, self._lease_seconds - (now - self._since) % self._lease_seconds)

    def note(self, look: Look, answer: ExchangeAnswer, now: float) -> None:
        """Take note of an answer."""
        if look.alone:
            self.runs = bool(answer.taken)
            self.is_alone = False
            if not answer.repeated:
                self.waits = self.runs
        elif answer.repeated:
            self.is_alone = self.runs = False
        elif look.due and look.want and self._policy is not PoisonMessages.NEVER:
            if answer.has_poison and not self.waits:
                self._since = now
            self.waits = answer.has_poison
