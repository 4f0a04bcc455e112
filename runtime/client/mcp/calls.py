"""Calls of tools: each is a request, whose message id is the handle by which its result is found later.

The request and its answer are messages, so a call outlives the client, this server and the workers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import uuid4

from runtime.agent.services import AskOptions
from runtime.client.pending_request import PendingRequest
from runtime.client.stream import Stream
from runtime.errors import AskFailed, AskTimeout, NobodyAnswers, Refused
from runtime.message import Draft

# The header of a request with the name of the tool: nothing else may be looked at or cancelled as a call.
TOOL_HEADER: Final = "tool"
_WRITER: Final = "mcp"


@dataclass(frozen=True, slots=True)
class CallState:
    """What is known of a call.

    Attributes:
        request: the message id of its request.
        state: whether there is an answer, an error, or neither yet.
        result: what the handler returned.
        error: why there is no answer.
        headers: those of the answer.
    """

    request: int
    state: Literal["done", "failed", "pending"]
    result: Any = None
    error: str | None = None
    headers: Mapping[str, Any] | None = None


class ToolCalls:
    """Begins calls, finds them again, waits for them and ends them.

    Args:
        stream: where the requests are written.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def begin(
        self, tool: str, key: str, value: object, headers: Mapping[str, Any], seconds: float
    ) -> PendingRequest:
        """Send the request of a call, within so many seconds.

        Raises:
            AskTimeout: it could not be sent in time.
            InvalidValue: the value cannot be stored.
            StoreError: it was not stored.
        """
        options = AskOptions(headers={**headers, TOOL_HEADER: tool})
        draft = self._stream.requester.draft(key, value, options, agent=_WRITER, dedup_key=f"ask {uuid4()}")
        pending = PendingRequest(draft, seconds, is_for_one=True)
        await self._stream.requester.settle(pending, seconds, patience=0)
        if pending.request is None:
            raise AskTimeout(key, None, draft.headers["reply_to"] if draft.headers else "", seconds, None)
        return pending

    async def find(self, request: int) -> PendingRequest:
        """Find a call again, by the message id of its request.

        Raises:
            Refused: there is no such call.
            StoreError: the stream cannot be read.
        """
        message = await self._stream.get(request)
        if message is None or TOOL_HEADER not in message.headers or message.reply_to is None:
            raise Refused(f"Message {request} is no call of a tool, or it is pruned.")
        draft = Draft(message.key, message.value, headers=message.headers)
        return PendingRequest(draft, None, is_for_one=True, request=request)

    async def settle(self, pending: PendingRequest, seconds: float) -> CallState:
        """Wait for the answer of a call, for so many seconds at most; 0 looks once.

        Raises:
            StoreError: the answers cannot be read.
        """
        request = pending.request or 0
        await self._stream.requester.settle(pending, seconds or None, patience=None if seconds else 0)
        try:
            [answer] = pending.answers()
            return CallState(request, "done", answer.given(), headers=answer.message.headers)
        except AskTimeout:
            return CallState(request, "pending")
        except (AskFailed, NobodyAnswers) as error:
            return CallState(request, "failed", error=str(error))

    async def cancel(self, request: int) -> dict[str, Any]:
        """End the work on a call.

        Returns:
            Its `deliveries`, each with its `subscription` and `state`.

        Raises:
            Refused: there is no such call.
        """
        await self.find(request)
        return await self._stream.operations.cancel(request)
