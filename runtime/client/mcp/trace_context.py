"""The W3C trace context of calls: from the client into the request, and from the answer back to the client."""

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_CARRIER: Final = TraceContextTextMapPropagator()
_NAMES: Final = ("traceparent", "tracestate")


def incoming() -> dict[str, str]:
    """Return the headers that put a request into the client's trace.

    The SDK has made the client's context the current one, or that of its own span where spans are recorded.
    """
    carrier: dict[str, str] = {}
    _CARRIER.inject(carrier)
    return carrier


def outgoing(headers: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the trace context in the headers of an answer, for the `_meta` of a result."""
    return {name: headers[name] for name in _NAMES if headers and isinstance(headers.get(name), str)}
