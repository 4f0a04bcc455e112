"""The declarations as an AsyncAPI 3 document, for other tools."""

import inspect
from collections.abc import Iterable
from typing import Any, Final, Literal
from urllib.parse import quote

from pydantic import TypeAdapter

from runtime.agent.agent import Agent
from runtime.agent.handler import Handler, Timer
from runtime.agent.handler_schemas import returned_type, taken_type
from runtime.agent.source import Source

_ANY: Final[dict[str, Any]] = {}
_TICK: Final[dict[str, Any]] = {
    "title": "Tick",
    "type": "object",
    "properties": {
        "slot": {"type": "string", "format": "date-time", "description": "The scheduled time."},
        "schedule": {"type": "string", "description": "The timer's name."},
        "missed": {
            "type": "integer",
            "minimum": 0,
            "description": "How many slots right before it got no tick.",
        },
    },
    "required": ["slot", "schedule", "missed"],
}
# The parentheses keep it apart from every key.
_ANSWERS: Final = "(answers)"
_Mode = Literal["validation", "serialization"]


def asyncapi_of(
    agents: Iterable[Agent], sources: Iterable[Source] = (), *, title: str, version: str
) -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document of these agents and sources, as plain JSON data.

    A key or pattern is a channel, a handler an operation that receives from its channels, and its `emits` an operation
    that sends. Its return value is its reply to a request. Payloads are the JSON schemas of the handlers' annotations.

    Args:
        agents: in the document's order.
        sources: of webhooks; each is an operation that sends.
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
    tags = [*(_tag(agent) for agent in agents), *({"name": source.name} for source in sources)]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": title,
            "version": version,
            "tags": tags,
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas},
    }


def _tag(agent: Agent) -> dict[str, Any]:
    """Return the tag of an agent, with the steps that it can undo; what else a handler does is known when it runs."""
    undos = agent.hooks.undos.names()
    return {"name": agent.name, **({"x-undos": undos} if undos else {})}


def _operation(
    channels: dict[str, Any], handler: Handler, action: str, pattern: str, payload: dict[str, Any]
) -> dict[str, Any]:
    """Return the operation of a handler at a key or pattern, and add the channel."""
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
        **(_extensions(handler) if action == "receive" else {}),
        "messages": [{"$ref": f"{reference}/messages/{message_id}"}],
    }


def _may_answer(handler: Handler) -> bool:
    """Whether a handler's messages can be requests: ticks are none, nor messages that every process gets."""
    return handler.timer is None and handler.deliver != "each"


def _reply(channels: dict[str, Any], handler: Handler, payload: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to a request: the handler's return value, under the key that the request names."""
    about = "Answers, each under the key that its request names."
    channel = channels.setdefault(_ANSWERS, {"address": None, "description": about, "messages": {}})
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
    """Return the operation of a source: its requests are written under its key, with any body."""
    title = f"webhooks of {source.name}"
    about = f"POST /webhooks/{source.name}, signed by the scheme {source.scheme}, is a message under {source.key}."
    message = {"name": source.key, "title": title, "payload": _ANY}
    return _sending(channels, source.pattern, f"{source.name}.webhook", message, title, about, source.name)


def _ticks(channels: dict[str, Any], name: str, agent: str, timer: Timer) -> dict[str, Any]:
    """Return the operation of a timer: its ticks are messages under a key, which other handlers may read too."""
    about = f"A tick for each slot of the schedule, once for all workers: {timer.schedule.spec}."
    message = {"name": timer.key, "title": f"tick of {name}", "payload": _TICK}
    operation = _sending(channels, timer.key, f"{name}.tick", message, f"timer of {name}", about, agent)
    return {**operation, "x-schedule": timer.schedule.spec}


def _sending(
    channels: dict[str, Any], pattern: str, message_id: str, message: Any, title: str, about: str, tag: str
) -> dict[str, Any]:
    """Return an operation that sends one kind of message, and add that to the channel."""
    reference = f"#/channels/{quote(pattern, safe='*:')}"
    channels.setdefault(pattern, _channel(pattern))["messages"][message_id] = message
    return {
        "action": "send", "channel": {"$ref": reference}, "title": title, "description": about,
        "tags": [{"name": tag}], "messages": [{"$ref": f"{reference}/messages/{message_id}"}],
    }  # fmt: skip


def _extensions(handler: Handler) -> dict[str, Any]:
    """Return how messages come to a handler, if not one by one and as soon as they are written."""
    found = {
        "x-deliver": "each" if handler.deliver == "each" else None,
        "x-batch": None if handler.batch is None else handler.batch.size,
        "x-rate": None if handler.rate is None else str(handler.rate),
        "x-budget": None if handler.budget is None else str(handler.budget),
        "x-concurrency-total": handler.concurrency_total,
        "x-version": handler.version,
        "x-pin": True if handler.pin else None,
        "x-tool": handler.tool,
        "x-posts-to": None if handler.target is None else handler.target.shown,
    }
    return {name: given for name, given in found.items() if given is not None}


def _channel(pattern: str) -> dict[str, Any]:
    """Return a channel; each wildcard is a parameter of its address."""
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
    """Return the payloads' schemas by handler and direction, and the schemas they refer to, by name."""
    wanted: list[tuple[str, _Mode, TypeAdapter[Any]]] = []
    for handler in handlers:
        taken = taken_type(handler)
        returned = returned_type(handler) if handler.emits is not None or _may_answer(handler) else None
        wanted += [(handler.name, "validation", taken)] if taken else []
        wanted += [(handler.name, "serialization", returned)] if returned else []
    found, definitions = TypeAdapter.json_schemas(wanted, ref_template="#/components/schemas/{model}")
    return dict(found), definitions.get("$defs", {})
