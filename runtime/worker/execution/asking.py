"""One request of one attempt: awaited in the process for a moment, and then with the handler suspended."""

import time
from asyncio import wrap_future

from runtime.agent.answer_wait import AnswerWait
from runtime.agent.waiting import GRACE_SECONDS
from runtime.client.pending_request import PendingRequest
from runtime.client.requester import Requester
from runtime.message import Answer


class Asking:
    """Waits for the answers of one request.

    Args:
        requester: sends it and reads its answers, on the runtime's own loop.
        pending: the request.
        wait: suspends the handler; None where it cannot be suspended, or does not wait for so long.
    """

    def __init__(self, requester: Requester, pending: PendingRequest, wait: AnswerWait | None) -> None:
        self._requester = requester
        self._pending = pending
        self._wait = wait
        self._began = time.monotonic()
        self._is_unread = False
        if wait is not None:
            pending.request = wait.request

    async def answers(self) -> list[Answer]:
        """Return the answers; see `PendingRequest.answers`.

        Raises:
            Suspended: they take longer than a moment.
        """
        while not await wrap_future(self._requester.submit(self._look)):
            found = self._pending.found
            if self._wait is not None and found is not None and not await self._wait.answered(found):
                break
        return self._pending.answers()

    def answers_blocking(self) -> list[Answer]:
        """As `answers`, in the thread of a plain handler."""
        while not self._requester.submit(self._look).result():
            found = self._pending.found
            if self._wait is not None and found is not None and not self._wait.answered_blocking(found):
                break
        return self._pending.answers()

    async def _look(self) -> bool:
        """Wait in the process; returns whether the request is settled, or its time over."""
        pending, seconds = self._pending, self._pending.seconds
        left = None if seconds is None else max(0.0, seconds - (time.monotonic() - self._began))
        patience = self._patience()
        # No wait begins but after the answers that are there by then: they may be enough.
        pending.found = None
        await self._requester.settle(pending, left, patience)
        self._is_unread = pending.found is None
        if pending.found is not None and self._wait is not None and not self._wait.is_possible(pending.found):
            self._wait = None
        is_late = seconds is not None and time.monotonic() - self._began >= seconds
        return pending.settled.is_set() or is_late

    def _patience(self) -> float | None:
        """The seconds to wait in the process now; None for as long as it takes."""
        if self._wait is None:
            return None
        if self._is_unread:
            # The store is away, and no wait can begin before it is back.
            return GRACE_SECONDS
        # A later attempt has had its moment in the one that was suspended first.
        return self._wait.grace if self._wait.request is None else 0.0
