"""The wait for an answer: a request that takes longer than a moment suspends the handler that made it."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from runtime.agent.request_reply import RequestState
from runtime.agent.retry import LONGEST_SECONDS
from runtime.agent.step import StepPlace
from runtime.agent.step_names import WAIT_PREFIX
from runtime.agent.waiting import Outcome, Suspended, Waited, WaitKeeper, Waits
from runtime.encoding.json import encode
from runtime.keys import is_key

_NAME_CHARACTERS: Final = 200


class AnswerWait:
    """The wait of one request for its answers, over all attempts of the delivery that asks.

    A step keeps the request, so that a later attempt finds it even when its dedup_key is forgotten, and has the time
    run from the first asking. The wait ends with each answer, and is used again for the next one.

    Args:
        waits: those of the attempt, which has a keeper of them.
        key: the key of the request.
        dedup_key: tells it from others of this delivery.
        seconds: how long to wait for answers in all; None for ever.
    """

    def __init__(self, waits: Waits, key: str, dedup_key: str, seconds: float | None) -> None:
        assert waits.keeper is not None
        self._keeper: WaitKeeper = waits.keeper
        self._waits = waits
        name, same = f"ask {key}"[:_NAME_CHARACTERS], hashlib.sha256(dedup_key.encode()).hexdigest()[:16]
        self._place: StepPlace = (name, same, 1)
        self._ended: StepPlace = (f"{WAIT_PREFIX}{name}", same, 1)
        # The step is kept when the first attempt has waited for a moment already.
        is_bounded = seconds is not None and seconds <= LONGEST_SECONDS
        self.grace = waits.grace
        self._seconds = seconds - self.grace if seconds is not None and is_bounded else None
        waits.steps.asked |= {self._place, self._ended}

    @property
    def request(self) -> int | None:
        """The id of the request, where an attempt has been suspended for its answers before."""
        kept = self._waits.steps.kept.get(self._place)
        return None if kept is None else int(kept["request"])

    def is_possible(self, found: RequestState) -> bool:
        """Whether a message can end the wait: a dedup_key may belong to a message that is no request."""
        return is_key(found.reply_to)

    async def answered(self, found: RequestState) -> bool:
        """Wait for an answer beyond those that were found; returns False when the time for them is over.

        Raises:
            Suspended: there is none yet.
        """
        if self.request is None and self._waits.steps.keeper is not None:
            earlier = await self._waits.steps.keeper.keep(self._place, encode({"request": found.request}))
            self._note(found, earlier)
        return self._is_answered(await self._keeper.wait([self._wire(found)], _is_any, 0.0))

    def answered_blocking(self, found: RequestState) -> bool:
        """As `answered`, in the thread of a plain handler."""
        if self.request is None and self._waits.steps.keeper is not None:
            text = encode({"request": found.request})
            self._note(found, self._waits.steps.keeper.keep_blocking(self._place, text))
        return self._is_answered(self._keeper.wait_blocking([self._wire(found)], _is_any, 0.0))

    def _note(self, found: RequestState, earlier: Sequence[Any]) -> None:
        self._waits.steps.kept[self._place] = earlier[0] if earlier else {"request": found.request}

    def _wire(self, found: RequestState) -> dict[str, Any]:
        name, key, occurrence = self._place
        return {
            "name": name, "key": key, "occurrence": occurrence, "pattern": found.reply_to, "parent": found.request,
            "since": found.request, "seen": found.seen, "seconds": self._seconds,
        }  # fmt: skip

    def _is_answered(self, waited: Waited) -> bool:
        [outcome] = waited.outcomes
        if outcome is None:
            # At once: the database looks whether an answer has come meanwhile, and puts it off further.
            self._waits.suspended = Suspended([self._place], 0.0)
            raise self._waits.suspended
        self._waits.steps.kept[self._ended] = outcome
        return "answer" in outcome


def _is_any(outcomes: Sequence[Outcome]) -> bool:
    return any(outcome is not None for outcome in outcomes)
