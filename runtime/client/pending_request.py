"""One request that waits for its answers, without a loop or a store."""

from dataclasses import dataclass, field

import anyio

from runtime.agent.request_reply import RequestState
from runtime.errors import AskTimeout, RuntimeFault
from runtime.message import Answer, Draft


@dataclass(eq=False)
class PendingRequest:
    """A request, and what is known of its answers.

    Attributes:
        draft: the request as a message.
        seconds: how long to wait for the answers in all; None for ever. For errors: the waiter keeps the time.
        count: how many answers are enough; None for all that can come.
        is_for_one: whether the first good answer counts, whatever `count` says.
        request: its id, once it is known to be stored.
        found: its state as it was read last.
        settled: set when no more has to be waited for.
        error: what ends it without an answer.
    """

    draft: Draft
    seconds: float | None
    count: int | None = None
    is_for_one: bool = False
    request: int | None = None
    found: RequestState | None = None
    settled: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None
    _answers: tuple[Answer, ...] | None = None

    @property
    def key(self) -> str:
        """The key to ask under."""
        return self.draft.key

    def note(self, found: RequestState) -> bool:
        """Take note of the answers so far; returns whether they settle it."""
        self.found = found
        try:
            if self.is_for_one:
                best = found.best()
                self._answers = None if best is None else (best,)
            else:
                self._answers = found.settled(self.count)
        except RuntimeFault as error:
            self.error = error
        if self._answers is not None or self.error is not None:
            self.settled.set()
        return self.settled.is_set()

    def fail(self, error: Exception) -> None:
        """Settle it with an error: no more answers can be read."""
        self.error = self.error or error
        self.settled.set()

    def answers(self) -> list[Answer]:
        """Return the answers, when it is settled or its time is over.

        Raises:
            AskTimeout: its time is over, and one answer was wanted or the request could not even be sent.
            NobodyAnswers: one answer was wanted, and none can come.
            StoreError: the answers cannot be read.
        """
        if self.error is not None:
            raise self.error
        if self._answers is not None:
            return list(self._answers)
        if self.is_for_one or self.request is None:
            raise self._timeout()
        return [] if self.found is None else list(self.found.answers[: self.count])

    def _timeout(self) -> AskTimeout:
        found = self.found
        reply_to, left = (
            ((self.draft.headers or {})["reply_to"], None)
            if found is None
            else (found.reply_to, found.waiting)
        )
        return AskTimeout(self.key, self.request, reply_to, self.seconds or 0.0, left)
