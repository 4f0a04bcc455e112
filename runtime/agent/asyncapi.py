"""What may be written and read, in a form other tools understand? The declarations as an AsyncAPI 3 document."""

import inspect
import types
from collections.abc import Iterable
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import quote

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError

from runtime.agent.agent import Agent
from runtime.agent.handler import Handler, Timer
from runtime.agent.source import Source

_ANY: Final[dict[str, Any]] = {}
_TICK: Final[dict[str, Any]] = {
    "title": "Tick",
    "type": "object",
    "properties": {
        "slot": {"type": "string", "format": "date-time", "description": "The moment it stands for."},
        "schedule": {"type": "string", "description": "The timer's name."},
        "missed": {
            "type": "integer",
            "minimum": 0,
            "description": "How many slots before it were passed over.",
        },
    },
    "required": ["slot", "schedule", "missed"],
}
# No key: those have dots, or another meaning.
_ANSWERS: Final = "(answers)"
_Mode = Literal["validation", "serialization"]


def asyncapi_of(
    agents: Iterable[Agent], sources: Iterable[Source] = (), *, title: str, version: str
) -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document of what these agents and sources declare, as plain JSON data.

    A key or pattern is a channel, a handler an operation that receives from its channels, and what it emits an
    operation that sends. What it returns is its reply to a request. Payloads are the JSON schemas of the handlers'
    annotations.

    Args:
        agents: whose declarations.
        sources: whose webhooks become messages; each is an operation that sends.
        title: the application's name.
        version: the application's version.
    """
    agents = list(agents)
    handlers = [handler for agent in agents for handler in agent.handlers]
    payloads, schemas = _payloads(handlers)
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for handler in handlers:
        # An operation has one channel, so a handler of several patterns is several operations.
        for number, pattern in enumerate(handler.patterns, start=1):
            name = handler.name if len(handler.patterns) == 1 else f"{handler.name}.{number}"
            operations[name] = _operation(
                channels, handler, "receive", pattern, payloads.get((handler.name, "validation"), _ANY)
            )
            if (answer := payloads.get((handler.name, "serialization"))) is not None and _may_answer(handler):
                operations[name]["reply"] = _reply(channels, handler, answer)
        if handler.timer is not None:
            operations[f"{handler.name}.timer"] = _ticks(channels, handler.name, handler.agent, handler.timer)
        if handler.emits is not None:
            operations[f"{handler.name}.emits"] = _operation(
                channels, handler, "send", handler.emits, payloads.get((handler.name, "serialization"), _ANY)
            )
    sources = list(sources)
    for source in sources:
        operations[f"{source.name}.webhook"] = _webhook(channels, source)
    names = [*(agent.name for agent in agents), *(source.name for source in sources)]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": title,
            "version": version,
            "tags": [{"name": name} for name in names],
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas},
    }


def _operation(
    channels: dict[str, Any], handler: Handler, action: str, pattern: str, payload: dict[str, Any]
) -> dict[str, Any]:
    """The operation of a handler at a key or pattern, whose channel it adds to the others."""
    reference = f"#/channels/{quote(pattern, safe='*:')}"
    message_id = f"{handler.name}.{action}"
    channel = channels.setdefault(pattern, _channel(pattern))
    channel["messages"][message_id] = {"name": pattern, "title": handler.name, "payload": payload}
    description = inspect.getdoc(handler.function)
    return {
        "action": action,
        "channel": {"$ref": reference},
        "title": handler.name,
        **({"description": description} if description else {}),
        "tags": [{"name": handler.agent}],
        # Every process gets it, at most once; without this word one of them does, and it is kept until then.
        **(_extensions(handler) if action == "receive" else {}),
        "messages": [{"$ref": f"{reference}/messages/{message_id}"}],
    }


def _may_answer(handler: Handler) -> bool:
    """Whether what it gets can be a request: no tick is one, nor what every process gets."""
    return handler.timer is None and handler.deliver != "each"


def _reply(channels: dict[str, Any], handler: Handler, payload: dict[str, Any]) -> dict[str, Any]:
    """What it answers a request: the same as it returns, under the key that the request names."""
    channel = channels.setdefault(
        _ANSWERS,
        {
            "address": None,
            "description": "Answers, each under the key that its request names.",
            "messages": {},
        },
    )
    channel["messages"][handler.name] = {"title": f"answer of {handler.name}", "payload": payload}
    return {
        "address": {
            "location": "$message.header#/reply_to",
            "description": "Only a message with this header is a request.",
        },
        "channel": {"$ref": f"#/channels/{_ANSWERS}"},
        "messages": [{"$ref": f"#/channels/{_ANSWERS}/messages/{handler.name}"}],
    }


def _webhook(channels: dict[str, Any], source: Source) -> dict[str, Any]:
    """The operation of a source: what it posts is written under its key, whatever it holds."""
    reference = f"#/channels/{quote(source.pattern, safe='*:')}"
    message_id, title = f"{source.name}.webhook", f"webhooks of {source.name}"
    channel = channels.setdefault(source.pattern, _channel(source.pattern))
    channel["messages"][message_id] = {"name": source.key, "title": title, "payload": _ANY}
    return {
        "action": "send",
        "channel": {"$ref": reference},
        "title": title,
        "description": f"POST /webhooks/{source.name}, signed by the scheme {source.scheme}, is a message under "
        f"{source.key}.",
        "tags": [{"name": source.name}],
        "messages": [{"$ref": f"{reference}/messages/{message_id}"}],
    }


def _ticks(channels: dict[str, Any], name: str, agent: str, timer: Timer) -> dict[str, Any]:
    """The operation of a timer: its ticks are messages under a key, which others may read too."""
    reference = f"#/channels/{quote(timer.key, safe=':')}"
    message_id = f"{name}.tick"
    channel = channels.setdefault(timer.key, _channel(timer.key))
    channel["messages"][message_id] = {"name": timer.key, "title": f"tick of {name}", "payload": _TICK}
    return {
        "action": "send",
        "channel": {"$ref": reference},
        "title": f"timer of {name}",
        "description": f"A tick for each slot of the schedule, once for all workers: {timer.schedule.spec}.",
        "tags": [{"name": agent}],
        "x-schedule": timer.schedule.spec,
        "messages": [{"$ref": f"{reference}/messages/{message_id}"}],
    }


def _extensions(handler: Handler) -> dict[str, Any]:
    """How messages come to a handler, where it is another way than one by one, as they are written."""
    found = {
        "x-deliver": "each" if handler.deliver == "each" else None,
        "x-batch": None if handler.batch is None else handler.batch.size,
        "x-rate": None if handler.rate is None else str(handler.rate),
        "x-concurrency-total": handler.concurrency_total,
        "x-posts-to": None if handler.target is None else handler.target.shown,
    }
    return {name: given for name, given in found.items() if given is not None}


def _channel(pattern: str) -> dict[str, Any]:
    """A channel; each wildcard is a parameter of its address."""
    segments: list[str] = []
    parameters: dict[str, Any] = {}
    for number, segment in enumerate(pattern.split("."), start=1):
        if segment in ("*", ">"):
            name = f"segment{number}" if segment == "*" else "rest"
            means = "One segment." if segment == "*" else "One or more segments, joined by dots."
            parameters[name] = {"description": means}
            segment = f"{{{name}}}"
        segments.append(segment)
    return {
        "address": ".".join(segments),
        "messages": {},
        **({"parameters": parameters} if parameters else {}),
    }


def _payloads(handlers: list[Handler]) -> tuple[dict[tuple[str, _Mode], Any], dict[str, Any]]:
    """The payloads' schemas by handler and direction, and the schemas they refer to, by name."""
    wanted: list[tuple[str, _Mode, TypeAdapter[Any]]] = []
    for handler in handlers:
        signature = handler.signature
        adapters = [adapter for _, adapter in (*filter(None, [signature.value]), *signature.messages)]
        taken = next((adapter for adapter in adapters if adapter is not None), None)
        returned = _returned(handler) if handler.emits is not None or _may_answer(handler) else None
        wanted += [(handler.name, "validation", taken)] if taken and _has_schema(taken) else []
        wanted += [(handler.name, "serialization", returned)] if returned and _has_schema(returned) else []
    found, definitions = TypeAdapter.json_schemas(wanted, ref_template="#/components/schemas/{model}")
    return dict(found), definitions.get("$defs", {})


def _has_schema(adapter: TypeAdapter[Any]) -> bool:
    """Whether a type has a JSON schema at all; one of a validator's own making may have none."""
    try:
        adapter.json_schema()
    except PydanticInvalidForJsonSchema:
        return False
    return True


def _returned(handler: Handler) -> TypeAdapter[Any] | None:
    """What a handler returns, where its annotation says so; None is not emitted and left out."""
    try:
        annotation = get_type_hints(inspect.unwrap(handler.function), include_extras=True).get("return", Any)
        annotation = _without_none(annotation)
        if handler.batch is not None and get_origin(annotation) is list:
            # What is emitted is one for each message.
            annotation = _without_none(next(iter(get_args(annotation)), Any))
        return None if annotation in (Any, object, type(None)) else TypeAdapter(annotation)
    except (NameError, AttributeError, TypeError, PydanticUndefinedAnnotation, PydanticUserError):
        # It may name what is imported for type checkers only, or be no type of JSON data: then anything goes.
        return None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    rest = [each for each in get_args(annotation) if each is not type(None)]
    return Union[tuple(rest)]  # noqa: UP007 - of a list that is known here only
