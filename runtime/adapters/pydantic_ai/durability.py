"""The durability engine: what Pydantic AI calls a capability, which makes one run part of a delivery."""

from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, get_args
from uuid import UUID, uuid5

import anyio
from pydantic_ai import (
    AbstractToolset,
    AgentRunResult,
    DeferredToolRequests,
    DeferredToolResults,
    RunContext,
    ToolApproved,
    ToolDenied,
    ToolsetTool,
    WrapperToolset,
)
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import WrapRunHandler
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    CallToolResult,
    DurabilityEngineSpec,
    conversation_id_from_run_id,
    durable_unit_scope,
    record_durable_unit,
    replay_scope,
)

# How a call of a tool has ended, by ModelRetry or ApprovalRequired perhaps, the framework itself knows to write down.
from pydantic_ai.durable_exec._toolset import wrap_tool_call_result
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import AgentStreamEvent, ModelResponse, ModelResponseStreamEvent, ToolCallPart
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.usage import RequestUsage

from runtime.adapters.pydantic_ai.operations import StepBackend, storable, stored
from runtime.adapters.pydantic_ai.transcript import Transcript
from runtime.agent.approval import Decision
from runtime.agent.context import Context
from runtime.agent.step_scope import safe_key, scoped, step_scope
from runtime.agent.waiting import Suspended, timeout_of
from runtime.encoding.json import encode
from runtime.encoding.printable import printable
from runtime.errors import InvalidValue

# Who decides has to see all of what is decided: what is left out could be what matters.
MAX_DETAIL_BYTES: Final = 65_536
# Of the name of a tool, which a server of others may give, and of a question.
_NAME_CHARACTERS: Final = 100
_RUNS: Final = UUID("6d1cbb43-5d0c-4c38-9d0c-9d7f8f6d8a31")
_MODEL_EVENTS: Final = get_args(get_args(ModelResponseStreamEvent)[0])


def record_usage(context: Context, model: str | None, usage: RequestUsage) -> None:
    """Tell what a model request took; called once for each one that was made, and for none that is kept.

    Args:
        context: that of the handler.
        model: the name of the model, as its provider gives it.
        usage: the tokens of this request.
    """
    context.usage(tokens_in=usage.input_tokens, tokens_out=usage.output_tokens, model=model)


def _unkept(error: Exception) -> InvalidValue:
    """Return the error of a result that has no JSON form: another attempt would come to the same."""
    return InvalidValue(f"A step of the agent returned what has no JSON form: {error}.")


class RuntimeDurability(BaseDurabilityCapability[Any]):
    """Makes one run of an agent part of a delivery, given to it as `capabilities=[RuntimeDurability(context)]`.

    Each model request is a step, and so is each call of a tool: of a function, of an MCP server, of any toolset. A tool
    with `metadata={"step": False}` is called anew in each attempt. A call that needs approval, or is deferred, suspends
    the delivery until a person has decided; what they answer is the result of a deferred one.

    An agent that a tool runs is given one of its own. Its steps, and what else a tool waits for, belong to the call.

    Args:
        context: that of the handler.
        key: tells runs of one agent apart that go on at the same time in this handler.
        text: the name of a text that gets what the model writes, as it writes it; `stream.follow` reads it.
        events: the name of a text that gets the events of the run, one in a line as JSON; parts of the model's
            responses are in it when they are whole.
        approval_timeout: how long people have for a decision, as for `context.approve`; then the call is refused. None
            for ever.
        name: begins the names of the steps; the agent's name by default.
    """

    engine_spec = DurabilityEngineSpec(
        engine_name="agent-runtime",
        durable_unit_noun="step",
        durable_container_noun="handler",
        codec=JSON_CODEC,
        serialization_failure=_unkept,
        # All toolsets are wrapped at once, further below, which needs no ids of them.
        wrapped_toolset_kinds=frozenset(),
        accepts_cancellation_token=True,
    )

    def __init__(
        self,
        context: Context,
        *,
        key: str = "",
        text: str | None = None,
        events: str | None = None,
        approval_timeout: float | str | timedelta | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        timeout_of(approval_timeout)
        self._context = context
        self._key = safe_key(key)
        self._text, self._events = text, events
        self._approval_timeout = approval_timeout
        self._run = 0
        self._calls: Counter[str] = Counter()
        self._transcript = Transcript()
        # Whether the last model request was really made, so that its events were written as they came.
        self._is_live = False

    def _bind_to_agent(self, agent: AbstractAgent[Any, Any]) -> None:
        # Once for each run, which has a copy of its own.
        self._run = self._context.opened_steps.count(f"{self.name} run", scoped(self._key))
        self._calls = Counter()
        # The names of steps depend on no model, so one binding serves all requests.
        backend = self.get_durable_operation_backend()
        self._bound_model_operations = self._bind_model_operations(backend, model_id=None, model_name="any")

    @property
    def in_durable_context(self) -> bool:
        """Whether a run is part of a delivery; one that is given this capability always is."""
        return True

    def get_durable_operation_backend(self) -> StepBackend:
        """Return what makes an operation of the framework a step."""
        return StepBackend(self)

    def get_default_run_id(self) -> str:
        """Return an id that the run has in every attempt."""
        return str(uuid5(_RUNS, f"{self._context.idempotency_key} {self.name} {scoped(self._path())}"))

    def get_default_conversation_id(self, run_id: str) -> str:
        """Return an id that the conversation of a run has in every attempt, where it continues none."""
        return conversation_id_from_run_id(run_id)

    async def step(self, name: str, call: str | None, work: Callable[[], Awaitable[object]]) -> Any:
        """Return the kept result of a part of the run, or work it out and keep it.

        Args:
            name: of the step, after the agent's.
            call: the id of the call of a tool that the part belongs to; None for none.
            work: returns JSON data.
        """
        key = self._path(call)
        scope = scoped(key)
        is_kept = True

        async def once() -> object:
            nonlocal is_kept
            is_kept = False
            with durable_unit_scope(), step_scope(scope):
                return storable(await work())

        name = f"{self.name} {printable(name, _NAME_CHARACTERS)}"
        result = await self._context.step(name, once, key=key, returns=Any)
        if is_kept and call is not None:
            self._context.opened_steps.leave_out(scope)
        record_durable_unit(executed=not is_kept)
        return stored(result)

    def _path(self, call: str | None = None) -> str:
        """Return the key of the run, or of a call of a tool in it."""
        run = f"run {self._run}" if self._run > 1 else ""
        return safe_key("/".join(filter(None, (self._key, run, call))))

    # Models

    def _bind_models(self, agent: AbstractAgent[Any, Any]) -> None:
        self._models_by_id = {}

    def _model_id_for_request(self, ctx: RunContext[Any], request_context: ModelRequestContext) -> str:
        # A step runs in this very process, so the model itself is at hand, and none has to be registered.
        return self._find_model_id(request_context.model)

    def _find_model_id(self, model: Model) -> str:
        for known, each in self._models_by_id.items():
            if each is model:
                return known
        known = f"model {len(self._models_by_id) + 1}"
        self._models_by_id[known] = model
        return known

    async def _resolve_model_for_request(self, model_id: str | None, run_context: RunContext[Any]) -> Model:
        assert model_id is not None
        return self._models_by_id[model_id]

    def begin_request(self) -> None:
        """Note that a model request comes, which may be kept."""
        self._is_live = False

    def make_request(self) -> None:
        """Note that it is not, and is made now."""
        self._is_live = True

    def end_request(self, response: ModelResponse) -> None:
        """Tell what it took."""
        record_usage(self._context, response.model_name, response.usage)

    # Tools

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        """Return all toolsets of a run with calls that are steps."""
        return _StepToolset(toolset, self)

    async def call_tool(
        self, toolset: AbstractToolset[Any], name: str, arguments: dict[str, Any], run: RunContext[Any],
        tool: ToolsetTool[Any],
    ) -> Any:  # fmt: skip
        """Call a tool in a step, unless its metadata says that it needs none."""
        number = run.tool_call_id or ""
        self._calls[number] += 1
        if (coming := self._calls[number]) > 1:
            # A call comes again when it is approved, and some providers number those of each response anew.
            number = f"{number} ({coming})"
        if (tool.tool_def.metadata or {}).get("step") is False:
            with step_scope(scoped(self._path(number))):
                return await toolset.call_tool(name, arguments, run, tool)

        async def call() -> object:
            with self._tool_run_context_scope(run) as guarded:
                ending = await wrap_tool_call_result(toolset.call_tool(name, arguments, guarded, tool))
            return self._encode(CallToolResult, ending)

        return self._unwrap_tool_result(
            JSON_CODEC.load(CallToolResult, await self.step(f"tool {name}", number, call))
        )

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[Any], *, requests: DeferredToolRequests
    ) -> DeferredToolResults:
        """Ask people about all calls at once, and return what they have decided.

        Raises:
            Suspended: they have not decided about all of them yet.
        """
        results = DeferredToolResults()
        suspended: list[Suspended] = []
        errors: list[Exception] = []

        async def ask(call: ToolCallPart) -> None:
            # One that waits, or fails, leaves the others to be asked.
            try:
                await self._decide(call, requests, results)
            except Suspended as waiting:
                suspended.append(waiting)
            except Exception as error:  # noqa: BLE001 - raised when all have been asked
                errors.append(error)

        async with anyio.create_task_group() as asking:
            for call in (*requests.approvals, *requests.calls):
                asking.start_soon(ask, call)
        if errors:
            raise errors[0]
        if suspended:
            places = [place for each in suspended for place in each.places]
            raise Suspended(places, min(each.delay for each in suspended))
        return results

    async def _decide(
        self, call: ToolCallPart, requests: DeferredToolRequests, results: DeferredToolResults
    ) -> None:
        """Ask people about one call, and add what they have decided to the results."""
        number = call.tool_call_id
        is_approval = requests.kind(number) == "approval"
        decision = await self._asked(call, requests.metadata.get(number), None if is_approval else Any)
        who = "A person has refused" if decision.by else "Nobody has decided in time about"
        why = decision.why or f"{who} this call."
        if decision.by is not None:
            results.answered_by[number] = decision.by
        if is_approval:
            results.approvals[number] = ToolApproved() if decision.approved else ToolDenied(why)
        else:
            results.calls[number] = decision.answer if decision.approved else ToolFailed(why)

    async def _asked(self, call: ToolCallPart, metadata: dict[str, Any] | None, answer: Any) -> Decision:
        details = {"agent": self.name, "tool": call.tool_name, "arguments": call.args_as_dict()}
        if metadata is not None:
            details["metadata"] = metadata
        details = storable(details)
        if (size := len(encode(details))) > MAX_DETAIL_BYTES:
            why = f"What it is about takes {size:,} bytes; people are shown {MAX_DETAIL_BYTES:,} at most."
            return Decision(approved=False, why=why)
        title = (metadata or {}).get("title")
        if not isinstance(title, str) or not title.strip():
            title = f"Let {self.name} call {call.tool_name}?"
        return await self._context.approve(
            printable(title, _NAME_CHARACTERS),
            details=details,
            answer=answer,
            timeout=self._approval_timeout,
            on_timeout="raise" if self._approval_timeout is None else "reject",
            key=self._path(call.tool_call_id),
        )

    # Texts

    @property
    def has_wrap_run_event_stream(self) -> bool:
        """Whether the model's responses are streamed; only where somebody follows them."""
        return self._text is not None or self._events is not None

    def _model_stream_event_handler(self) -> Any:
        return self._transcript.write_all if self.has_wrap_run_event_stream else None

    async def wrap_run_event_stream(
        self, ctx: RunContext[Any], *, stream: AsyncIterable[AgentStreamEvent]
    ) -> AsyncIterable[AgentStreamEvent]:
        """Write the events of a run down, beside those that a model request has written as they came."""
        async for event in stream:
            if not (self._is_live and isinstance(event, _MODEL_EVENTS)):
                await self._transcript.write(event)
            yield event

    async def wrap_run(self, ctx: RunContext[Any], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Run an agent, with its texts open."""
        async with AsyncExitStack() as opened:
            words, events = [
                None if name is None else await opened.enter_async_context(self._context.stream(name))
                for name in (self._text, self._events)
            ]
            self._transcript = Transcript(words, events)
            opened.enter_context(replay_scope())
            return await super().wrap_run(ctx, handler=handler)


@dataclass
class _StepToolset(WrapperToolset[Any]):
    """The toolsets of a run, whose calls are steps."""

    durability: RuntimeDurability

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        return await self.durability.call_tool(self.wrapped, name, tool_args, ctx, tool)
