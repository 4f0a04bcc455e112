"""The server: which tools there are, and what a call of one does."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import Final

import anyio
from mcp import MCPError
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    EmptyResult,
    InputRequiredResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)

from runtime.client.mcp.calls import ToolCalls
from runtime.client.mcp.conversation import Conversation
from runtime.client.mcp.own_tools import OWN_TOOLS, OwnTool
from runtime.client.mcp.resources import TEMPLATE, contents, resources
from runtime.client.mcp.subscriptions import ResourceWatches
from runtime.client.mcp.tools import HandlerTool, refused
from runtime.client.mcp.trace_context import incoming
from runtime.client.stream import Stream, connect
from runtime.errors import InvalidKey, RuntimeFault
from runtime.settings import Settings

WAIT_SECONDS: Final = 25.0
# How long a person may take to decide what the client shows them.
_STATE_SECONDS: Final = 86_400.0
_INSTRUCTIONS: Final = (
    "Tools of this server are handlers of agents behind a durable stream of messages. A call that has no answer within "
    "{seconds:g} seconds returns the state `pending` and the number of its `request`: the work goes on, and "
    "stream_result returns its result later, also in another session. Calls are not repeated by themselves: before you "
    "repeat one, ask stream_result for the first."
)


@dataclass(frozen=True, slots=True)
class Served:
    """What the requests of all clients share.

    Attributes:
        stream: where messages live.
        calls: of tools.
        watches: of resources.
    """

    stream: Stream
    calls: ToolCalls
    watches: ResourceWatches


class StreamServer:
    """The handlers of the protocol's requests.

    Args:
        settings: where the stream is, and whether there are tools that write to it, beside calls of handlers.
        wait_seconds: how long a call waits for its answer.
        secret: what several processes share that serve the same clients; without one, a client that was asked something
            answers the process that has asked.
    """

    def __init__(
        self, settings: Settings, *, wait_seconds: float = WAIT_SECONDS, secret: str | None = None
    ) -> None:
        self._settings = settings
        self._wait_seconds = wait_seconds
        key = os.urandom(32) if secret is None else sha256(secret.encode()).digest()
        self._state = RequestStateSecurity(keys=[key], ttl=_STATE_SECONDS)
        self._own: dict[str, OwnTool] = {
            tool.name: tool for tool in OWN_TOOLS if settings.mcp_writes or not tool.writes
        }

    def build(self) -> Server[Served]:
        """Return the server of the protocol."""
        server = Server(
            "agent-runtime",
            version=version("agent-runtime"),
            instructions=_INSTRUCTIONS.format(seconds=self._wait_seconds),
            lifespan=self._serving,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_subscribe_resource=self._subscribe,
            on_unsubscribe_resource=self._unsubscribe,
            on_subscriptions_listen=self._listen,
        )
        server.middleware.append(RequestStateBoundary(self._state, default_audience="agent-runtime"))
        return server

    @asynccontextmanager
    async def _serving(self, _: Server[Served]) -> AsyncIterator[Served]:
        async with connect(self._settings) as stream, anyio.create_task_group() as tasks:
            yield Served(stream, ToolCalls(stream), ResourceWatches(stream, tasks))
            tasks.cancel_scope.cancel()

    async def _list_tools(
        self, ctx: ServerRequestContext[Served], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        with _told():
            handlers = await handler_tools(ctx.lifespan_context.stream)
        return ListToolsResult(
            tools=[
                *(each.told() for each in handlers.values()),
                *(each.told() for each in self._own.values()),
            ]
        )

    async def _call_tool(
        self, ctx: ServerRequestContext[Served], params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        served, arguments = ctx.lifespan_context, params.arguments or {}
        try:
            if (own := self._own.get(params.name)) is not None:
                return await own.call(served.stream, served.calls, arguments)
            tool = (await handler_tools(served.stream)).get(params.name)
            if tool is None:
                raise MCPError(INVALID_PARAMS, f"There is no tool {ascii(params.name)[:80]}.")
            call = Conversation(ctx, served.stream, served.calls, self._wait_seconds)
            if params.request_state is not None:
                return await call.go_on(params.request_state, params.input_responses or {})
            # Where spans are recorded, that of the sending carries the context on.
            trace = {} if self._settings.telemetry else incoming()
            return await call.begin(tool, tool.value(arguments), trace)
        except RuntimeFault as fault:
            return refused(str(fault))

    async def _list_resources(
        self, ctx: ServerRequestContext[Served], params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        with _told():
            return ListResourcesResult(resources=await resources(ctx.lifespan_context.stream))

    async def _list_templates(
        self, ctx: ServerRequestContext[Served], params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=[TEMPLATE])

    async def _read_resource(
        self, ctx: ServerRequestContext[Served], params: ReadResourceRequestParams
    ) -> ReadResourceResult:
        with _told():
            return ReadResourceResult(contents=[await contents(ctx.lifespan_context.stream, params.uri)])

    async def _subscribe(
        self, ctx: ServerRequestContext[Served], params: SubscribeRequestParams
    ) -> EmptyResult:
        with _told():
            await ctx.lifespan_context.watches.subscribe(ctx.session, params.uri)
        return EmptyResult()

    async def _unsubscribe(
        self, ctx: ServerRequestContext[Served], params: UnsubscribeRequestParams
    ) -> EmptyResult:
        ctx.lifespan_context.watches.unsubscribe(ctx.session, params.uri)
        return EmptyResult()

    async def _listen(
        self, ctx: ServerRequestContext[Served], params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        with _told():
            return await ctx.lifespan_context.watches.listen(ctx, params)


async def handler_tools(stream: Stream) -> dict[str, HandlerTool]:
    """Return the handlers that are tools, by the names of the tools.

    Of two with one name the first subscription is called; workers refuse to declare two of their own.

    Raises:
        StoreError: the stream cannot be read.
    """
    found: dict[str, HandlerTool] = {}
    for each in await stream.views.tools():
        tool = HandlerTool.of(each["tool"])
        found.setdefault(tool.name, tool)
    return found


@contextmanager
def _told() -> Iterator[None]:
    """Answer a request that fails with an error of the protocol."""
    try:
        yield
    except InvalidKey as fault:
        raise MCPError(INVALID_PARAMS, str(fault)) from fault
    except RuntimeFault as fault:
        raise MCPError(INTERNAL_ERROR, str(fault)) from fault
