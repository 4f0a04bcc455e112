"""The server: which tools there are, and what a call of one does."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from mcp import MCPError
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
)

from runtime.client.mcp.calls import ToolCalls
from runtime.client.mcp.own_tools import OWN_TOOLS, OwnTool
from runtime.client.mcp.tools import HandlerTool, call_result, refused
from runtime.client.mcp.trace_context import incoming, outgoing
from runtime.client.stream import Stream, connect
from runtime.errors import RuntimeFault
from runtime.settings import Settings

WAIT_SECONDS: Final = 25.0
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
    """

    stream: Stream
    calls: ToolCalls


class StreamServer:
    """The handlers of the protocol's requests.

    Args:
        settings: where the stream is.
        writes: whether tools that write to the stream, beside calls of handlers, are there.
        wait_seconds: how long a call waits for its answer.
    """

    def __init__(
        self, settings: Settings, *, writes: bool = False, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self._settings = settings
        self._wait_seconds = wait_seconds
        self._own: dict[str, OwnTool] = {tool.name: tool for tool in OWN_TOOLS if writes or not tool.writes}

    def build(self) -> Server[Served]:
        """Return the server of the protocol."""
        return Server(
            "agent-runtime",
            version=version("agent-runtime"),
            instructions=_INSTRUCTIONS.format(seconds=self._wait_seconds),
            lifespan=self._serving,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )

    @asynccontextmanager
    async def _serving(self, _: Server[Served]) -> AsyncIterator[Served]:
        async with connect(self._settings) as stream:
            yield Served(stream, ToolCalls(stream))

    async def _list_tools(
        self, ctx: ServerRequestContext[Served], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        try:
            handlers = await handler_tools(ctx.lifespan_context.stream)
        except RuntimeFault as fault:
            raise _failed(fault) from fault
        return ListToolsResult(
            tools=[
                *(each.told() for each in handlers.values()),
                *(each.told() for each in self._own.values()),
            ]
        )

    async def _call_tool(
        self, ctx: ServerRequestContext[Served], params: CallToolRequestParams
    ) -> CallToolResult:
        served, arguments = ctx.lifespan_context, params.arguments or {}
        try:
            if (own := self._own.get(params.name)) is not None:
                return await own.call(served.stream, served.calls, arguments)
            tool = (await handler_tools(served.stream)).get(params.name)
            if tool is None:
                raise MCPError(INVALID_PARAMS, f"There is no tool {ascii(params.name)[:80]}.")
            return await self._ask(ctx, tool, arguments)
        except RuntimeFault as fault:
            return refused(str(fault))

    async def _ask(
        self, ctx: ServerRequestContext[Served], tool: HandlerTool, arguments: Mapping[str, Any]
    ) -> CallToolResult:
        """Ask the handler of a tool, and wait for its answer."""
        calls = ctx.lifespan_context.calls
        value = tool.value(arguments)
        # Where spans are recorded, that of the sending carries the context on.
        trace = {} if self._settings.telemetry else incoming()
        pending = await calls.begin(tool.name, tool.key, value, trace, self._wait_seconds)
        call = await calls.settle(pending, self._wait_seconds)
        return call_result(call, trace=outgoing(call.headers))


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


def _failed(fault: RuntimeFault) -> MCPError:
    return MCPError(-32603, str(fault))
