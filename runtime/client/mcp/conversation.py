"""One call of a handler, with what the person in front of the client is asked meanwhile."""

import json
from collections.abc import Mapping
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.types import (
    INVALID_PARAMS,
    CallToolResult,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
)
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from runtime.client.mcp.approvals import OpenApproval, note_of_approvals, open_approvals, settle_or_ask
from runtime.client.mcp.calls import CallState, ToolCalls
from runtime.client.mcp.tools import HandlerTool, call_result
from runtime.client.mcp.trace_context import outgoing
from runtime.client.pending_request import PendingRequest
from runtime.client.stream import Stream


class Conversation:
    """A call, from its beginning or from where a client goes on with it.

    Since 2026-07-28 the server asks by its result, and the client calls again with the answer; before, the server sends
    a request of its own while the client waits.

    Args:
        ctx: of the client's request.
        stream: where the messages are.
        calls: of tools.
        wait_seconds: how long to wait for an answer.
    """

    def __init__(
        self, ctx: ServerRequestContext[Any], stream: Stream, calls: ToolCalls, wait_seconds: float
    ) -> None:
        self._ctx = ctx
        self._stream = stream
        self._calls = calls
        self._wait_seconds = wait_seconds
        self._asked: set[int] = set()

    async def begin(
        self, tool: HandlerTool, value: object, headers: Mapping[str, Any]
    ) -> CallToolResult | InputRequiredResult:
        """Send the request, and follow it.

        Raises:
            RuntimeFault: it could not be sent, or its answers cannot be read.
        """
        return await self._follow(
            await self._calls.begin(tool.name, tool.key, value, headers, self._wait_seconds)
        )

    async def go_on(self, state: str, given: Mapping[str, Any]) -> CallToolResult | InputRequiredResult:
        """Take what the person has decided, and follow the call again.

        Args:
            state: as this server has made it; the SDK has checked that.
            given: the person's answers, by what was asked.

        Raises:
            RuntimeFault: there is no such call any more, or the stream cannot be reached.
        """
        try:
            told = json.loads(state)
            request, self._asked = int(told["request"]), set(told["asked"])
        except (ValueError, TypeError, KeyError):
            raise MCPError(INVALID_PARAMS, "The state of the request is none of this server's.") from None
        pending = await self._calls.find(request)
        for approval in await open_approvals(self._stream, request):
            answer = given.get(_name_of(approval))
            if approval.request in self._asked and isinstance(answer, ElicitResult):
                await self._decide(approval, answer)
        return await self._follow(pending)

    async def _follow(self, pending: PendingRequest) -> CallToolResult | InputRequiredResult:
        while True:
            call = await self._settle(pending)
            if isinstance(call, CallState):
                note = await note_of_approvals(self._stream, call)
                return call_result(call, note, outgoing(call.headers))
            self._asked.add(call.request)
            if (question := call.elicitation()) is None:
                # A form cannot ask for it; the result says who can be asked.
                continue
            if self._ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
                state = json.dumps({"request": pending.request, "asked": sorted(self._asked)})
                return InputRequiredResult(input_requests={_name_of(call): question}, request_state=state)
            assert isinstance(question.params, ElicitRequestFormParams)
            try:
                answer = await self._ctx.session.elicit_form(
                    question.params.message, question.params.requested_schema, self._ctx.request_id
                )
            except MCPError:
                # The client cannot ask after all.
                continue
            await self._decide(call, answer)

    async def _settle(self, pending: PendingRequest) -> CallState | OpenApproval:
        if not self._can_ask():
            return await self._calls.settle(pending, self._wait_seconds)
        return await settle_or_ask(
            self._stream, self._calls, pending, self._wait_seconds, frozenset(self._asked)
        )

    def _can_ask(self) -> bool:
        capabilities = self._ctx.session.client_capabilities
        asks = None if capabilities is None else capabilities.elicitation
        # In its older form the capability is empty.
        has_forms = asks is not None and (asks.form is not None or asks.url is None)
        is_modern = self._ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
        return has_forms and (is_modern or self._ctx.session.can_send_request)

    async def _decide(self, approval: OpenApproval, given: ElicitResult) -> None:
        if (decision := approval.decision(given)) is None:
            return
        client = self._ctx.session.client_params
        name = client.client_info.name[:100] if client is not None else "a client"
        with anyio.CancelScope(shield=True):
            await self._stream.operations.decide(approval.request, by=f"{name} over MCP", **decision)


def _name_of(approval: OpenApproval) -> str:
    return f"approval-{approval.request}"
