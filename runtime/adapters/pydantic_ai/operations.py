"""Operations of Pydantic AI as steps: the backend of its durability engines."""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar

from pydantic_ai import RunContext
from pydantic_ai.durable_exec import (
    BoundDurableOperation,
    CapabilityOperationId,
    DurableOperation,
    DurableOperationBackend,
    DurableOperationId,
    ModelCancelSuspendedResponseId,
    ModelCompactMessagesId,
    ModelRequestId,
)
from pydantic_ai.messages import ModelResponse

ParamsT = TypeVar("ParamsT")
WireT = TypeVar("WireT")
ResultT = TypeVar("ResultT")

_ESCAPED: Final = "escaped"
# A NUL, which JSON always escapes, or half of a surrogate pair.
_UNSTORABLE: Final = re.compile(r"\\u0000|[\ud800-\udfff]")


class RunSteps(Protocol):
    """The steps of one run."""

    async def step(self, name: str, call: str | None, work: Callable[[], Awaitable[object]]) -> Any:
        """Return the kept result of a part of the run, as JSON data, or work it out and keep it."""

    def begin_request(self) -> None:
        """Note that a model request comes, which may be kept."""

    def make_request(self) -> None:
        """Note that it is not, and is made now."""

    def end_request(self, response: ModelResponse) -> None:
        """Tell what it took."""


class StepBackend(DurableOperationBackend[Any]):
    """Makes the operations of a run steps.

    Args:
        steps: those of the run.
    """

    def __init__(self, steps: RunSteps) -> None:
        self._steps = steps

    def bind(
        self, operation: DurableOperation[ParamsT, WireT, ResultT]
    ) -> BoundDurableOperation[ParamsT, WireT, ResultT]:
        """Return an operation as a step."""
        return StepOperation(operation, self._steps)

    def config_for_tool(
        self, operation: DurableOperation[Any, Any, Any], *, tool: object | None, tool_name: str
    ) -> Literal[False]:
        """Return False: calls of tools are made steps elsewhere, all in one place."""
        return False

    def registrations(self) -> Sequence[Callable[..., object]]:
        """Return nothing: a step is not registered before it is come to."""
        return ()


class StepOperation(BoundDurableOperation[ParamsT, WireT, ResultT]):
    """One operation of a run, as a step."""

    def __init__(self, operation: DurableOperation[ParamsT, WireT, ResultT], steps: RunSteps) -> None:
        self._operation = operation
        self._steps = steps

    @property
    def operation(self) -> DurableOperation[ParamsT, WireT, ResultT]:
        """The operation itself."""
        return self._operation

    async def __call__(self, params: ParamsT, *, config: object | None = None) -> ResultT:
        """Return its kept result, or work it out and keep it."""
        operation = self._operation
        is_request = isinstance(operation.operation_id, ModelRequestId | ModelCompactMessagesId)
        run = getattr(params, "run_context", None)
        assert isinstance(run, RunContext)
        if is_request:
            self._steps.begin_request()

        async def work() -> object:
            if is_request:
                self._steps.make_request()
            result = await operation.handler(params)
            if isinstance(result, ModelResponse):
                self._steps.end_request(result)
            return operation.result_codec.dump(result)

        return operation.result_codec.load(
            await self._steps.step(_name_of(operation.operation_id), run.tool_call_id, work)
        )


def _name_of(operation: DurableOperationId) -> str:
    """Return the name of the step of an operation, after the agent's; it is stored, so it has to stay."""
    match operation:
        case ModelRequestId():
            # Streamed or not: a run that was begun without followers goes on with them.
            return "model"
        case ModelCompactMessagesId():
            return "compact"
        case ModelCancelSuspendedResponseId():
            return "cancel"
        case CapabilityOperationId(capability_id=capability, operation=name):
            return f"{capability} {name}"
    return type(operation).__name__


def storable(data: Any) -> Any:
    """Return JSON data as it can be kept: what jsonb does not take, a NUL in a model's words perhaps, as a text.

    A result that could not be kept would be paid for again in every attempt.
    """
    text = json.dumps(data, ensure_ascii=False)
    if _UNSTORABLE.search(text) is None:
        return data
    return {_ESCAPED: json.dumps(data)}


def stored(data: Any) -> Any:
    """Return the data that `storable` was given."""
    return json.loads(data[_ESCAPED]) if isinstance(data, dict) and data.keys() == {_ESCAPED} else data
