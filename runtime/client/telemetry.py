"""OpenTelemetry: a span for each send, each handler and each emit, in one trace through many agents.

Spans are joined across agents and processes by the W3C trace context (`traceparent`) in the messages' headers. They and
the metrics follow the semantic conventions for messaging. Loaded only where `RUNTIME_TELEMETRY` asks for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runtime.agent.step_names import WAIT_PREFIX
from runtime.agent.usage import usage_by_model
from runtime.agent.waiting import suspension
from runtime.message import Draft
from runtime.store import Delivery, Report

_SCOPE: Final = "runtime"
_SYSTEM: Final = {"messaging.system": "agent_runtime"}
_CARRIER: Final = TraceContextTextMapPropagator()


class Telemetry:
    """Makes the spans and counts the metrics.

    Args:
        tracers: the provider of tracers; by default the application's own.
        meters: the provider of meters; by default the application's own.
    """

    def __init__(self, tracers: TracerProvider | None = None, meters: MeterProvider | None = None) -> None:
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracers)
        meter = metrics.get_meter(_SCOPE, meter_provider=meters)
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Messages written.")
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Messages handed to a handler."
        )
        self._seconds = meter.create_histogram("messaging.process.duration", "s", "How long handlers ran.")
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of language models, by attempt and model."
        )

    @contextmanager
    def sending(self, drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
        """Have a span for each draft while it is written; yields the drafts with the trace context in their headers."""
        spans = [self._producer(draft) for draft in drafts]
        try:
            yield [_carrying(draft, span) for draft, span in zip(drafts, spans, strict=True)]
        except BaseException as error:
            for span in spans:
                _fail(span, type(error).__qualname__)
            raise
        else:
            for draft in drafts:
                self._sent.add(1, _at(draft.key, "send"))
        finally:
            for span in spans:
                span.end()

    @contextmanager
    def handling(self, handler: str, worker: str, delivery: Delivery) -> Iterator[Span]:
        """Have a current span while a handler runs; its parent is the span that wrote the message."""
        with trace.use_span(
            self._consumer(handler, worker, delivery), end_on_exit=True, record_exception=True
        ) as span:
            yield span

    @contextmanager
    def step(self, name: str) -> Iterator[Span]:
        """Have a current span while the function of a step runs; a step whose result is kept has none."""
        attributes = {"agent_runtime.step": name}
        # Of an error the type alone: its text may be private.
        with self._tracer.start_as_current_span(
            f"step {name}", attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                # A handler that waits goes on later.
                if suspension(error) is None:
                    _fail(span, type(error).__qualname__)
                raise

    @contextmanager
    def handling_batch(
        self, handler: str, worker: str, deliveries: Sequence[Delivery]
    ) -> Iterator[list[Span]]:
        """Have a span for each delivery, in the trace of its message, while a handler runs on all of them.

        The handler's own work belongs to none of those traces alone: its span is linked with all of them.
        """
        spans = [self._consumer(handler, worker, delivery) for delivery in deliveries]
        links = [trace.Link(span.get_span_context()) for span in spans]
        attributes: dict[str, Any] = {
            **_SYSTEM,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.batch.message_count": len(deliveries),
            "messaging.consumer.group.name": handler,
            "messaging.client.id": worker,
        }
        try:
            with self._tracer.start_as_current_span(
                f"process {handler}", Context(), SpanKind.CONSUMER, attributes, links
            ):
                yield spans
        finally:
            for span in spans:
                span.end()

    def _consumer(self, handler: str, worker: str, delivery: Delivery) -> Span:
        message = delivery.message
        attributes = {
            **_at(message.key, "process"),
            "messaging.consumer.group.name": handler,
            "messaging.client.id": worker,
            "messaging.message.id": str(message.id),
            "agent_runtime.attempt": message.attempt,
        }
        if message.correlation_id is not None:
            attributes["messaging.message.conversation_id"] = message.correlation_id
        # The waits that ended while the handler was suspended.
        outcomes = [value for (name, *_), value in delivery.steps.items() if name.startswith(WAIT_PREFIX)]
        return self._tracer.start_span(
            f"process {message.key}",
            _CARRIER.extract(_texts(message.headers)),
            SpanKind.CONSUMER,
            attributes,
            _links(outcomes),
        )

    def waiting(self) -> str | None:
        """Return the trace context of the current span, which a wait keeps; None outside of a span."""
        return outgoing().get("traceparent")

    def went_on(self, outcomes: Sequence[Mapping[str, Any] | None]) -> None:
        """Link the current span with those that began these waits, and with the messages that have ended them."""
        span = trace.get_current_span()
        for link in _links(outcomes):
            if link.context != span.get_span_context():
                span.add_link(link.context, link.attributes)

    def emitting(self, drafts: Sequence[Draft], span: Span | None = None) -> list[Draft]:
        """Make a span for each emitted message; returns the drafts with the trace context in their headers.

        Args:
            drafts: the emitted messages.
            span: the parent of their spans; by default the current one.
        """
        with (
            nullcontext() if span is None else trace.use_span(span),
            self.sending(drafts) as carrying,
        ):
            return carrying

    def reported(self, span: Span, handler: str, report: Report) -> None:
        """Note on its span how an attempt ended, and count it."""
        key = report.delivery.message.key
        outcome = report.outcome or "done"
        attributes: dict[str, Any] = {
            **_at(key, "process"),
            "messaging.consumer.group.name": handler,
        }
        span.set_attribute("agent_runtime.outcome", outcome)
        if report.usage is not None:
            span.set_attributes(_usage(report.usage, handler, report.delivery.message.correlation))
            self._count_tokens(report.usage, handler)
        if outcome in ("failed", "dead"):
            kind = (report.error or outcome).partition(":")[0]
            attributes["error.type"] = kind
            _fail(span, kind)
        self._consumed.add(1, attributes)
        self._seconds.record(report.seconds, attributes)

    def _count_tokens(self, usage: Mapping[str, Any], handler: str) -> None:
        for used in usage_by_model(usage):
            attributes = {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": handler.partition(".")[0],
            }
            if "model" in used:
                attributes["gen_ai.request.model"] = used["model"]
            for kind, figure in (("input", "tokens_in"), ("output", "tokens_out")):
                if figure in used:
                    self._tokens.record(used[figure], {**attributes, "gen_ai.token.type": kind})

    def _producer(self, draft: Draft) -> Span:
        attributes = _at(draft.key, "send")
        if draft.correlation_id is not None:
            attributes["messaging.message.conversation_id"] = draft.correlation_id
        return self._tracer.start_span(f"send {draft.key}", kind=SpanKind.PRODUCER, attributes=attributes)


def start_exporting() -> None:
    """Send spans and metrics by OTLP to the place that the standard variables `OTEL_…` name, unless a provider is set.

    Raises:
        ModuleNotFoundError: the extra `otel` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        tracers = SdkTracerProvider()
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(tracers)
        metrics.set_meter_provider(SdkMeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))


def current_ids() -> dict[str, str]:
    """Return the current `trace_id` and `span_id`, for a log record; empty outside of a span."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def outgoing() -> dict[str, str]:
    """Return the headers that carry the current trace to another program; empty outside of a span."""
    carrier: dict[str, str] = {}
    _CARRIER.inject(carrier)
    return carrier


def _at(key: str, operation: str) -> dict[str, Any]:
    return {
        **_SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": key,
    }


def _usage(used: Mapping[str, Any], handler: str, conversation: str) -> dict[str, Any]:
    """The attributes of an attempt that used language models, by the conventions for generative AI.

    The conventions have no attribute for a price yet, so that one bears this runtime's own name.
    """
    found: dict[str, Any] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": handler.partition(".")[0],
        "gen_ai.conversation.id": conversation,
        "gen_ai.usage.input_tokens": used.get("tokens_in", 0),
        "gen_ai.usage.output_tokens": used.get("tokens_out", 0),
    }
    if "model" in used:
        found["gen_ai.request.model"] = used["model"]
    if "cost" in used:
        found["agent_runtime.usage.cost"] = used["cost"]
    return found


def _carrying(draft: Draft, span: Span) -> Draft:
    """The draft with the span's context in its headers, unless its writer gave one."""
    if draft.headers and "traceparent" in draft.headers:
        return draft
    carrier: dict[str, str] = {}
    _CARRIER.inject(carrier, trace.set_span_in_context(span))
    return draft.carrying(carrier)


def _links(outcomes: Sequence[Any]) -> list[trace.Link]:
    """The links of a span that goes on: with the span that was suspended, and with what has ended its wait."""
    found = []
    for outcome in outcomes:
        if not isinstance(outcome, Mapping):
            continue
        answer = outcome.get("answer")
        headers = answer["headers"] if isinstance(answer, Mapping) and answer.get("headers") else {}
        for kind, carrier in (("suspended", {"traceparent": outcome.get("trace")}), ("message", headers)):
            context = trace.get_current_span(_CARRIER.extract(_texts(carrier), Context())).get_span_context()
            if context.is_valid:
                found.append(trace.Link(context, {"agent_runtime.link": kind}))
    return found


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    """The headers that may be a trace context; any writer may have put anything there."""
    return {
        name: headers[name] for name in ("traceparent", "tracestate") if isinstance(headers.get(name), str)
    }


def _fail(span: Span, kind: str) -> None:
    # The type alone: an error's text may contain the message's value.
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
