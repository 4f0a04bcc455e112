"""People: a handler asks them, and goes on with what they decide."""

from datetime import timedelta
from typing import Any, Literal

from runtime.agent.approval import REQUESTED, ApprovalRequest, Decision, UnfitAnswer, decision_of
from runtime.agent.decision_link import DecisionLinks
from runtime.agent.long_work import LongWork
from runtime.agent.services import Requests
from runtime.agent.step_call import Step
from runtime.errors import SettingsError, WaitTimeout
from runtime.message import Message


class AskingPeople(LongWork):
    """The part of a context that asks people."""

    __slots__ = ()

    decision_links: DecisionLinks | None

    def _asker(self, method: str, options: Any) -> "Requests[Any]":
        raise NotImplementedError

    async def approve(
        self,
        title: str,
        *,
        details: Any = None,
        answer: Any = None,
        timeout: float | str | timedelta | None = None,
        on_timeout: Literal["raise", "approve", "reject"] = "raise",
        key: str = "",
    ) -> Decision:
        """Ask people, and return what the first of them decides; the delivery is suspended meanwhile.

        The request is a message under `approval.requested`, at once, and stays if this attempt fails: a handler of
        that key may tell people of it, or escalate. `runtime approvals`, the dashboard and `stream_decide` in SQL
        decide; the decision is a message under `approval.decided`, caused by the request.

        Args:
            title: the question, in a line: "Refund 120 € to Ada?".
            details: what people need to decide, as JSON data.
            answer: the type of a value that people give with their approval, such as a pydantic model or `int`; None
                for a plain yes or no. Where a value does not fit, people are asked again, and told why.
            timeout: how long to wait: seconds, or a text such as "2h" or "2d"; None for ever.
            on_timeout: what it counts as when nobody has decided by then.
            key: tells approvals of one title apart, where it is not their order that does.

        Raises:
            WaitTimeout: nobody has decided in time, and `on_timeout` is "raise".
            InvalidValue: an argument makes no sense.
            LeaseLost: the delivery belongs to another worker by now.
            StoreError: the request or the wait could not be stored.
        """
        approval = ApprovalRequest.of(title, details, answer, timeout, on_timeout)

        async def request(step: Step) -> int:
            value = approval.request()
            return await self._asker("approve", {}).send_now(self, REQUESTED, value, step.idempotency_key)

        while True:
            # A step: an attempt that comes later asks nobody once more, and has the same deadline.
            number = await self.step(approval.step, request, key=key)
            try:
                [decided] = await self._opened_waits().all([approval.wait(number)])
            except WaitTimeout:
                return approval.timed_out(number)
            try:
                return decision_of(decided, answer)
            except UnfitAnswer as unfit:
                approval = approval.again(decided, str(unfit))

    def approve_blocking(
        self,
        title: str,
        *,
        details: Any = None,
        answer: Any = None,
        timeout: float | str | timedelta | None = None,
        on_timeout: Literal["raise", "approve", "reject"] = "raise",
        key: str = "",
    ) -> Decision:
        """Do the same as `approve` in a handler that is a plain function."""
        self._check_thread("approve")
        approval = ApprovalRequest.of(title, details, answer, timeout, on_timeout)

        def request(step: Step) -> int:
            value = approval.request()
            asker = self._asker("approve_blocking", {})
            return asker.send_now_blocking(self, REQUESTED, value, step.idempotency_key)

        while True:
            number = self.step_blocking(approval.step, request, key=key)
            try:
                [decided] = self._opened_waits().all_blocking([approval.wait(number)])
            except WaitTimeout:
                return approval.timed_out(number)
            try:
                return decision_of(decided, answer)
            except UnfitAnswer as unfit:
                approval = approval.again(decided, str(unfit))

    def decision_link(self, request: Message[Any], *, by: str | None = None) -> str:
        """Return a link to a page where a request for approval is decided, for a mail or a chat.

        Opening it shows the request and decides nothing; the buttons of the page do. It counts until the request's
        deadline, and for a week at most. Whoever has it may decide, so give it to nobody else.

        Args:
            request: the message under `approval.requested`, as a handler of that key gets it.
            by: who the link is for, such as an address; kept as who decided. None has the page ask for a name.

        Raises:
            SettingsError: the worker has no RUNTIME_APPROVAL_SECRET.
            InvalidValue: the message is no request for approval, or `by` is no name.
        """
        if self.decision_links is None:
            raise SettingsError(
                "Links that decide approvals are signed: set RUNTIME_APPROVAL_SECRET, and RUNTIME_PUBLIC_URL to where "
                "`runtime serve` is reached."
            )
        # The handler's annotation may have made something else of the value.
        is_handled = isinstance(request, Message) and request.id == self.message.id
        return self.decision_links.url(self.message if is_handled else request, by=by)
