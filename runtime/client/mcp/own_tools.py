"""The server's own tools: results of calls, and what operators look at and mend."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from mcp.types import CallToolResult, TextContent, Tool, ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from runtime.client.dead_letters import DeadLetterFilter
from runtime.client.mcp.approvals import note_of_approvals
from runtime.client.mcp.calls import ToolCalls
from runtime.client.mcp.tools import MAX_RESULT_CHARACTERS, call_result
from runtime.client.mcp.trace_context import outgoing
from runtime.client.stream import Stream
from runtime.encoding.json import legible
from runtime.errors import InvalidValue

_MAX_WAIT_SECONDS: Final = 50
_Limit = Field(20, ge=1, le=100, description="How many at most.")
_MAX_ID: Final = 2**63 - 2


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ResultArguments(_Arguments):
    """The arguments of stream_result."""

    request: int = Field(ge=1, le=_MAX_ID, description="The number that the call returned.")
    wait_seconds: float = Field(0, ge=0, le=_MAX_WAIT_SECONDS, description="How long to wait for the answer.")


class CancelArguments(_Arguments):
    """The arguments of stream_cancel."""

    request: int = Field(ge=1, le=_MAX_ID, description="The number that the call returned.")


class TraceArguments(_Arguments):
    """The arguments of stream_trace."""

    message: int = Field(ge=1, le=_MAX_ID, description="The message's id.")
    limit: int = Field(50, ge=1, le=500, description="How many messages at most.")


class NoArguments(_Arguments):
    """The arguments of a tool that takes none."""


class SearchArguments(_Arguments):
    """The arguments of stream_search."""

    pattern: str = Field(">", description="A key, or a pattern: * stands for one segment, > for one or more.")
    text: str | None = Field(None, max_length=1000, description="A part of the value, in any case.")
    agent: str | None = Field(None, max_length=255, description="Only those this agent has written.")
    state: Literal["open", "failed", "dead", "done", "unhandled"] | None = None
    before: int | None = Field(None, description="Only messages with a lower id, to page on.")
    limit: int = _Limit


class DeadLettersArguments(_Arguments):
    """The arguments of stream_dead_letters."""

    subscription: str | None = Field(None, max_length=511, description="Only those of this agent.handler.")
    pattern: str | None = Field(None, description="Only those whose key matches.")
    error: str | None = Field(None, max_length=1000, description="A part of the error's text, in any case.")
    before: int | None = Field(None, description="Only those with a lower number, to page on.")
    limit: int = _Limit


class SendArguments(_Arguments):
    """The arguments of stream_send."""

    key: str = Field(description="A dotted name, such as task.output.")
    value: JsonValue = Field(None, description="Any JSON value.")
    dedup_key: str | None = Field(None, description="Sent again with the same one, it is stored once.")
    correlation_id: str | None = Field(None, description="The conversation it belongs to.")
    delay_seconds: float | None = Field(None, ge=0, description="Seconds until it is due.")


class RedriveArguments(_Arguments):
    """The arguments of stream_redrive."""

    ids: list[int] = Field(min_length=1, max_length=500, description="Numbers of stream_dead_letters.")


@dataclass(frozen=True, slots=True)
class OwnTool:
    """A tool of the server's own.

    Attributes:
        name: of the tool.
        about: its description.
        takes: its arguments.
        run: carries it out; returns JSON data, or the whole result.
        writes: whether it changes the stream.
    """

    name: str
    about: str
    takes: type[BaseModel]
    run: Callable[[Stream, ToolCalls, Any], Awaitable[Any]]
    writes: bool = False
    only_calls: bool = False

    def told(self) -> Tool:
        """Return the tool as the protocol lists it."""
        is_read = not self.writes and not self.only_calls
        return Tool(
            name=self.name,
            description=self.about,
            input_schema=self.takes.model_json_schema(),
            annotations=ToolAnnotations(read_only_hint=is_read, destructive_hint=not is_read),
        )

    async def call(self, stream: Stream, calls: ToolCalls, arguments: Mapping[str, Any]) -> CallToolResult:
        """Carry out a call.

        Raises:
            InvalidValue: the arguments do not fit.
            RuntimeFault: it failed.
        """
        try:
            given = self.takes.model_validate(arguments)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'they'}: {fault['msg']}"[:300]
                for fault in error.errors(include_input=False, include_url=False)[:5]
            )
            raise InvalidValue(f"The arguments do not fit the schema of {self.name}: {faults}") from None
        found = await self.run(stream, calls, given)
        return found if isinstance(found, CallToolResult) else _shown(found)


def _shown(found: Any) -> CallToolResult:
    text = legible(found)
    if len(text) > MAX_RESULT_CHARACTERS:
        text = (
            f"{text[:MAX_RESULT_CHARACTERS]}… cut after {MAX_RESULT_CHARACTERS:,} characters: ask for fewer."
        )
    return CallToolResult(content=[TextContent(text=text)])


async def _result(stream: Stream, calls: ToolCalls, given: ResultArguments) -> CallToolResult:
    call = await calls.settle(await calls.find(given.request), given.wait_seconds)
    return call_result(call, await note_of_approvals(stream, call), outgoing(call.headers))


async def _cancel(stream: Stream, calls: ToolCalls, given: CancelArguments) -> Any:
    return await calls.cancel(given.request)


async def _trace(stream: Stream, calls: ToolCalls, given: TraceArguments) -> Any:
    return await stream.views.trace(given.message, limit=given.limit)


async def _backlog(stream: Stream, calls: ToolCalls, given: NoArguments) -> Any:
    return await stream.stats()


async def _search(stream: Stream, calls: ToolCalls, given: SearchArguments) -> Any:
    return await stream.views.page(
        given.pattern, text=given.text, agent=given.agent, state=given.state, before=given.before,
        limit=given.limit,
    )  # fmt: skip


async def _dead_letters(stream: Stream, calls: ToolCalls, given: DeadLettersArguments) -> Any:
    which = DeadLetterFilter(subscription=given.subscription, pattern=given.pattern, error=given.error)
    return await stream.operations.dead_letters(which, before=given.before, limit=given.limit)


async def _send(stream: Stream, calls: ToolCalls, given: SendArguments) -> Any:
    sent = await stream.send(
        given.key, given.value, agent="mcp", dedup_key=given.dedup_key, delay=given.delay_seconds,
        correlation_id=given.correlation_id,
    )  # fmt: skip
    return {"id": sent.id, "duplicate": sent.duplicate, "unheard": sent.unheard}


async def _redrive(stream: Stream, calls: ToolCalls, given: RedriveArguments) -> Any:
    return {
        "redriven": sum([each async for each in stream.operations.redrive(DeadLetterFilter(ids=given.ids))])
    }


OWN_TOOLS: Final = (
    OwnTool(
        "stream_result",
        "The result of an earlier call of a tool, by the number of its request.",
        ResultArguments,
        _result,
    ),
    OwnTool(
        "stream_cancel",
        "End the work on an earlier call of a tool, by the number of its request.",
        CancelArguments,
        _cancel,
        only_calls=True,
    ),
    OwnTool(
        "stream_trace",
        "The whole story of a message: its causes and effects, and every attempt to handle them, with errors.",
        TraceArguments,
        _trace,
    ),
    OwnTool(
        "stream_backlog",
        "What waits, runs, failed and died at each subscription, and which workers live.",
        NoArguments,
        _backlog,
    ),
    OwnTool(
        "stream_search",
        "Messages by key, text, writer and state, the newest first, each with what became of it.",
        SearchArguments,
        _search,
    ),
    OwnTool(
        "stream_dead_letters",
        "Messages whose handling failed for good, the newest first, each with its error.",
        DeadLettersArguments,
        _dead_letters,
    ),
    OwnTool("stream_send", "Write one message to the stream.", SendArguments, _send, writes=True),
    OwnTool(
        "stream_redrive",
        "Have dead letters handled again, with fresh attempts.",
        RedriveArguments,
        _redrive,
        writes=True,
    ),
)
