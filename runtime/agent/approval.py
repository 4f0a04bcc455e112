"""Approvals: what a handler asks people, and what they decide."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from runtime.agent.waiting import WaitFor, timeout_of
from runtime.encoding.readback import read
from runtime.errors import InvalidValue, WaitTimeout
from runtime.message import Message

REQUESTED: Final = "approval.requested"
DECIDED: Final = "approval.decided"
_TITLE_CHARACTERS = 500


class UnfitAnswer(InvalidValue):
    """The answer of a decision does not fit the type that the handler asked for. It asks again."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person has decided.

    Attributes:
        approved: whether the answer is yes.
        answer: the value that was given with it, as the type that the handler asked for; None without one.
        by: who decided; None where time did.
        why: the reason given.
        at: when.
        request: the id of the request.
    """

    approved: bool
    answer: Any = None
    by: str | None = None
    why: str | None = None
    at: datetime | None = None
    request: int | None = None

    def __bool__(self) -> bool:
        """Whether it was approved: `if await context.approve(…):`."""
        return self.approved


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What a handler asks people.

    Attributes:
        title: the question, in a line.
        details: what people need to decide, as JSON data.
        answer: the type of the value that comes with an approval; None for none.
        seconds: how long to wait; None for ever.
        on_timeout: what it counts as when nobody has decided by then: "raise", "approve" or "reject".
        until: the deadline of an approval that is asked for now.
    """

    title: str
    details: Any
    answer: Any
    seconds: float | None
    on_timeout: str
    until: datetime | None
    refused: dict[str, Any] | None = None
    """Of a request that is made again: the decision before it, and why its answer was refused."""

    @classmethod
    def of(cls, title: str, details: Any, answer: Any, timeout: Any, on_timeout: str) -> "ApprovalRequest":
        """Return what the arguments of `Context.approve` ask.

        Raises:
            InvalidValue: one of them makes no sense.
        """
        seconds = check_approval(title, timeout, on_timeout)
        until = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        return cls(title, details, answer, seconds, on_timeout, until)

    @property
    def step(self) -> str:
        """The name of the step that sends the request."""
        return f"approve {self.title[:80]}"

    def request(self) -> dict[str, Any]:
        """Return the value of the request."""
        value = request_value(self.title, self.details, self.answer, self.until)
        return value if self.refused is None else value | {"refused": self.refused}

    def again(self, decision: Message[Any], why: str) -> "ApprovalRequest":
        """Return what is asked after a decision whose answer does not fit, with the whole time."""
        by = decision.value.get("by") if isinstance(decision.value, dict) else None
        until = None if self.seconds is None else datetime.now(UTC) + timedelta(seconds=self.seconds)
        return replace(self, until=until, refused={"decision": decision.id, "by": by, "why": why})

    def wait(self, number: int) -> WaitFor:
        """Return the wait for the decision of a request."""
        return WaitFor(DECIDED, {"request": number}, self.seconds, since=number, key=str(number))

    def timed_out(self, number: int) -> Decision:
        """Return what counts where nobody has decided.

        Raises:
            WaitTimeout: nothing does.
        """
        if self.on_timeout == "raise":
            raise WaitTimeout(f"Nobody has decided in time: {self.title}") from None
        return Decision(approved=self.on_timeout == "approve", request=number)


def check_approval(title: object, timeout: Any, on_timeout: object) -> float | None:
    """Check the arguments of `Context.approve`; returns the timeout in seconds.

    Raises:
        InvalidValue: one of them makes no sense.
    """
    if not isinstance(title, str) or not title.strip() or len(title) > _TITLE_CHARACTERS:
        raise InvalidValue(
            f"The title of an approval is the question in a line, of at most {_TITLE_CHARACTERS} characters: "
            '`await context.approve("Refund 120 € to Ada?")`.'
        )
    if on_timeout not in ("raise", "approve", "reject"):
        raise InvalidValue(f'on_timeout= is "raise", "approve" or "reject", not {on_timeout!r:.100}.')
    if on_timeout != "raise" and timeout is None:
        raise InvalidValue(f"on_timeout={on_timeout!r} needs a timeout=….")
    return timeout_of(timeout)


def request_value(title: str, details: Any, answer: Any, until: datetime | None) -> dict[str, Any]:
    """Return the value of a request for approval: title, details, schema of the answer, and until when it is open.

    Raises:
        InvalidValue: the type of the answer has no schema.
    """
    value: dict[str, Any] = {"title": title}
    if details is not None:
        value["details"] = details
    if answer is not None:
        try:
            value["schema"] = TypeAdapter(answer).json_schema()
        except Exception as error:
            raise InvalidValue(f"answer= is a type that pydantic knows, not {answer!r:.100}.") from error
    if until is not None:
        value["until"] = until.isoformat()
    return value


def deadline_of(value: object) -> datetime | None:
    """Return until when a request is open, from its value; None if it is open for ever."""
    until = value.get("until") if isinstance(value, dict) else None
    try:
        deadline = datetime.fromisoformat(until)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        # Any program may write under the key of requests.
        return None
    return deadline if deadline.tzinfo is not None else deadline.replace(tzinfo=UTC)


def decision_of(message: Message[Any], answer: Any) -> Decision:
    """Return the decision that a message under `approval.decided` holds.

    Args:
        message: the message.
        answer: the type of the value that comes with an approval; None for none.

    Raises:
        UnfitAnswer: the value does not fit that type.
    """
    told = message.value if isinstance(message.value, dict) else {}
    approved = told.get("approved") is True
    given = told.get("answer")
    if approved and answer is not None:
        try:
            given = read(TypeAdapter(answer), given)
        except ValidationError as refusal:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
                for fault in refusal.errors(include_input=False, include_url=False)[:5]
            )
            raise UnfitAnswer(
                f"The answer given with decision {message.id} does not fit: {faults}."
            ) from None
    return Decision(approved, given, told.get("by"), told.get("why"), message.created_at, told.get("request"))
