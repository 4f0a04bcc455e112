"""Handlers as tools: their schemas as the protocol wants them, and the results of calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcp.types import CallToolResult, TextContent, Tool, ToolAnnotations

from runtime.client.json_schema import complaints
from runtime.client.mcp.calls import CallState
from runtime.encoding.json import legible
from runtime.errors import InvalidValue

# A model reads every character of a result, and few can read so many.
MAX_RESULT_CHARACTERS: Final = 200_000
_WRAPPED: Final = "value"
_OBJECT: Final = "object"


@dataclass(frozen=True, slots=True)
class HandlerTool:
    """A handler that is a tool, as its declaration in the database says.

    Attributes:
        name: of the tool.
        key: that a call asks under.
        description: for the model.
        takes: the schema of the arguments.
        is_wrapped: whether the value is the argument `value`, since it is no object.
        returns: the schema of what the handler returns; any value where None.
    """

    name: str
    key: str
    description: str
    takes: Mapping[str, Any]
    is_wrapped: bool
    returns: Mapping[str, Any] | None

    @classmethod
    def of(cls, declared: Mapping[str, Any]) -> "HandlerTool":
        """Read the declaration of a tool."""
        taken = None if declared["input"] is None else _unfolded(declared["input"])
        is_wrapped = taken is not None and taken.get("type") != _OBJECT
        if is_wrapped:
            taken = _wrapped(taken or {}, _WRAPPED, [_WRAPPED])
        return cls(
            declared["name"], declared["key"], declared["description"], taken or {"type": _OBJECT}, is_wrapped,
            declared["output"],
        )  # fmt: skip

    def told(self) -> Tool:
        """Return the tool as the protocol lists it."""
        state = {
            "request": {
                "type": "integer",
                "description": "The handle of the call, for stream_result and stream_cancel.",
            },
            "state": {"enum": ["done", "pending", "failed"]},
        }
        # A handler may return None whatever its annotation says.
        returned = {} if self.returns is None else {"anyOf": [_unfolded(self.returns), {"type": "null"}]}
        output = _wrapped(returned, "result", ["request", "state"])
        output["properties"].update(state)
        return Tool(
            name=self.name,
            description=self.description,
            input_schema=dict(self.takes),
            output_schema=output,
            annotations=ToolAnnotations(open_world_hint=True),
        )

    def value(self, arguments: Mapping[str, Any]) -> Any:
        """Return the value to ask with.

        Raises:
            InvalidValue: the arguments do not fit the schema.
        """
        if wrong := complaints(self.takes, arguments):
            raise InvalidValue(
                f"The arguments do not fit the schema of {self.name}; nothing was sent. " + " ".join(wrong)
            )
        return arguments.get(_WRAPPED) if self.is_wrapped else dict(arguments)


def call_result(call: CallState, note: str = "", trace: Mapping[str, str] | None = None) -> CallToolResult:
    """Return the result of a call.

    Args:
        call: what is known of it.
        note: a further sentence for the model, where there is no answer yet.
        trace: the trace context of the answer.
    """
    told: dict[str, Any] = {"request": call.request, "state": call.state}
    if call.state == "pending":
        text = (
            f"Not answered yet; the work goes on. Call stream_result with request={call.request} later, or "
            f"stream_cancel to end it. {note}"
        ).strip()
    elif call.state == "failed":
        text = call.error or "It failed."
    else:
        text = legible(call.result)
        if len(text) <= MAX_RESULT_CHARACTERS:
            told["result"] = call.result
        else:
            text = f"{text[:1000]}… The answer has {len(text):,} characters, too many to be shown here."
    return CallToolResult(
        content=[TextContent(text=text)],
        structured_content=told,
        is_error=call.state == "failed",
        _meta=dict(trace) if trace else None,
    )


def refused(why: str) -> CallToolResult:
    """Return the result of a call that was not carried out, for the model to do better."""
    return CallToolResult(content=[TextContent(text=why)], is_error=True)


def _wrapped(schema: Mapping[str, Any], name: str, required: list[str]) -> dict[str, Any]:
    """Return the schema of an object with one member of this schema; definitions move to the root, where they are
    referred to."""
    inner = dict(schema)
    definitions = _taken_out(inner)
    return {
        "type": _OBJECT,
        "properties": {name: inner},
        "required": required,
        **({"$defs": definitions} if definitions else {}),
    }


def _taken_out(schema: dict[str, Any]) -> dict[str, Any]:
    """Remove the definitions of a schema and of its alternatives, and return them."""
    definitions = schema.pop("$defs", {})
    if "anyOf" in schema:
        schema["anyOf"] = alternatives = [dict(each) for each in schema["anyOf"]]
        for each in alternatives:
            definitions = {**definitions, **each.pop("$defs", {})}
    return dict(definitions)


def _unfolded(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose root is no reference: pydantic's for a model that holds others of its kind is one."""
    reference, definitions = schema.get("$ref", ""), schema.get("$defs", {})
    name = reference.rpartition("/")[2]
    if reference != f"#/$defs/{name}" or name not in definitions:
        return dict(schema)
    return {**definitions[name], "$defs": definitions}
