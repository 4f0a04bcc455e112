"""Approvals that a call waits for, as elicitations: questions to the person in front of the client."""

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import anyio
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult

from runtime.agent.approval import DECIDED, REQUESTED, deadline_of
from runtime.client.mcp.calls import CallState, ToolCalls
from runtime.client.pending_request import PendingRequest
from runtime.client.stream import Stream
from runtime.encoding.json import legible
from runtime.errors import RuntimeFault, StoreError
from runtime.message import Message

# Most calls are answered sooner, and then nothing listens for approvals.
_GRACE_SECONDS: Final = 0.3
_MAX_DETAILS: Final = 4_000
_PRIMITIVES: Final = frozenset({"string", "number", "integer", "boolean"})
# What a form of the protocol may say about a field.
_FORM_WORDS: Final = frozenset({
    "type", "title", "description", "default", "enum", "minimum", "maximum", "minLength", "maxLength"
})  # fmt: skip
_ANSWER: Final = "answer"


@dataclass(frozen=True, slots=True)
class OpenApproval:
    """A request for approval that nobody has decided.

    Attributes:
        request: its message id.
        title: the question.
        details: what people need to decide.
        schema: of the value that comes with an approval; None for none.
        refused: why the answer of a decision before did not fit.
    """

    request: int
    title: str
    details: Any = None
    schema: Mapping[str, Any] | None = None
    refused: str | None = None

    @classmethod
    def of(cls, message: Message[Any]) -> "OpenApproval":
        """Read the request that a message holds."""
        told = message.value if isinstance(message.value, dict) else {}
        before = told.get("refused")
        why = before.get("why") if isinstance(before, dict) else None
        schema = told.get("schema")
        return cls(
            message.id, str(told.get("title"))[:500], told.get("details"),
            schema if isinstance(schema, dict) else None, None if why is None else str(why),
        )  # fmt: skip

    def elicitation(self) -> ElicitRequest | None:
        """Return the question as the protocol asks it; None where its forms cannot ask for the answer."""
        if (fields := self._answer_fields()) is None:
            return None
        properties: dict[str, Any] = {
            "approved": {"type": "boolean", "title": "Approve?"},
            **fields,
            "why": {"type": "string", "title": "Why?"},
        }
        lines = [self.title]
        if self.details is not None:
            lines.append(legible(self.details)[:_MAX_DETAILS])
        if self.refused is not None:
            lines.append(f"The answer before did not fit: {self.refused}"[:_MAX_DETAILS])
        schema = {"type": "object", "properties": properties, "required": ["approved"]}
        return ElicitRequest(
            params=ElicitRequestFormParams(message="\n".join(lines), requested_schema=schema)
        )

    def decision(self, given: ElicitResult) -> dict[str, Any] | None:
        """Return what a person has decided, as `Admin.decide` takes it; None where they have not."""
        if given.action == "decline":
            return {"approved": False, "why": "declined"}
        content = given.content or {}
        if given.action != "accept" or not isinstance(content.get("approved"), bool):
            return None
        why = str(content["why"]) if content.get("why") else None
        if not content["approved"]:
            return {"approved": False, "why": why}
        return {"approved": True, "why": why, "answer": self._answer(content)}

    def _answer_fields(self) -> dict[str, Any] | None:
        """Return the fields of a form for the answer; None where they would not do."""
        schema = self.schema
        if schema is None:
            return {}
        if (field := _field(schema)) is not None:
            return {_ANSWER: field}
        if schema.get("type") != "object":
            return None
        fields = {name: _field(each) for name, each in schema.get("properties", {}).items()}
        if any(fields.get(name) is None for name in schema.get("required", ())):
            return None
        return {f"{_ANSWER}_{name}": field for name, field in fields.items() if field is not None}

    def _answer(self, content: Mapping[str, Any]) -> Any:
        if self.schema is None or _field(self.schema) is not None:
            return content.get(_ANSWER)
        start = f"{_ANSWER}_"
        return {name.removeprefix(start): value for name, value in content.items() if name.startswith(start)}


def _field(schema: object) -> dict[str, Any] | None:
    """Return the field of a form for a value with this schema; None where there is none."""
    if not isinstance(schema, dict) or schema.get("type") not in _PRIMITIVES:
        return None
    return {word: said for word, said in schema.items() if word in _FORM_WORDS}


async def open_approvals(stream: Stream, request: int) -> list[OpenApproval]:
    """Return what the handlers of a call ask people, and nobody has decided yet.

    Args:
        stream: where the messages are.
        request: the message id of the call.

    Raises:
        StoreError: the stream cannot be read.
    """
    conversation = str(request)
    asked = await stream.read(REQUESTED, correlation_id=conversation)
    if not asked:
        return []
    decided = {
        each.value.get("request")
        for each in await stream.read(DECIDED, correlation_id=conversation)
        if isinstance(each.value, dict)
    }
    now = datetime.now(UTC)
    return [
        OpenApproval.of(each)
        for each in asked
        if each.id not in decided and ((until := deadline_of(each.value)) is None or until > now)
    ]


async def settle_or_ask(
    stream: Stream, calls: ToolCalls, pending: PendingRequest, seconds: float, asked: frozenset[int]
) -> CallState | OpenApproval:
    """Wait for the answer of a call, or for an approval that it waits for.

    Args:
        stream: where the messages are.
        calls: of tools.
        pending: the call.
        seconds: how long to wait.
        asked: approvals that the person was asked for already.

    Raises:
        StoreError: the answers cannot be read.
    """
    call = await calls.settle(pending, min(_GRACE_SECONDS, seconds))
    if call.state != "pending" or seconds <= _GRACE_SECONDS:
        return call
    found: OpenApproval | None = None
    fault: RuntimeFault | None = None

    async def look() -> None:
        nonlocal found
        async with aclosing(stream.hints(REQUESTED)) as hints:
            async for _ in hints:
                try:
                    left = [
                        each
                        for each in await open_approvals(stream, call.request)
                        if each.request not in asked
                    ]
                except StoreError:
                    # The wait for the answer tells of it.
                    continue
                if left:
                    found = left[0]
                    tasks.cancel_scope.cancel()
                    return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        try:
            call = await calls.settle(pending, seconds - _GRACE_SECONDS)
        except RuntimeFault as error:
            # Raised outside of the group, so that it is no group.
            fault = error
        tasks.cancel_scope.cancel()
    if fault is not None:
        raise fault
    return call if found is None or call.state != "pending" else found


async def note_of_approvals(stream: Stream, call: CallState) -> str:
    """Return a sentence on what a call that has no answer waits for, if that is a person.

    Raises:
        StoreError: the stream cannot be read.
    """
    if call.state != "pending" or not (left := await open_approvals(stream, call.request)):
        return ""
    titles = "; ".join(f"{each.title} (request {each.request})" for each in left[:5])
    return f"It waits for a person's approval: {titles}. `runtime approvals`, or the dashboard, decides."
