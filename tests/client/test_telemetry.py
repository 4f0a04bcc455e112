"""One trace through agents of two processes, its metrics, and nothing private in it."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runtime import Agent, BatchContext, Context, Message, Retry, connect
from runtime.client.telemetry import current_ids
from runtime.message import Draft
from tests.integration.conftest import connected, running, until
from tests.worker.test_waits import is_suspended
from tests.worker.test_worker import direct, ready

pytestmark = pytest.mark.anyio

OTHER = """
import json, sys
import anyio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from runtime import Agent
from runtime.settings import Settings
from runtime.worker.worker import Worker

tracers = TracerProvider()
line = lambda span: span.to_json(indent=None) + "\\n"
tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=line)))
trace.set_tracer_provider(tracers)
agent = Agent("other")

@agent.on("draft.written", emits="draft.approved")
async def approve(text: str) -> str:
    return text + "!"

anyio.run(Worker([agent], Settings.load(database_url=sys.argv[1], telemetry=True)).run)
"""


@pytest.fixture(scope="module")
def exporters() -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    """The application's own providers, which can be set once per process."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([reader]))
    return spans, reader


@pytest.fixture
def spans(exporters: tuple[InMemorySpanExporter, InMemoryMetricReader]) -> InMemorySpanExporter:
    exporters[0].clear()
    return exporters[0]


def named(spans: InMemorySpanExporter, name: str) -> Any:
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


@pytest.mark.usefixtures("nothing_is_suspended")
async def test_a_request_and_its_answer_are_in_the_trace_of_whoever_asked(
    database: str, spans: InMemorySpanExporter
) -> None:
    desk, shop = Agent("desk"), Agent("shop")

    @desk.on("bill.wanted")
    async def bill(item: str, context: Context) -> Any:
        return await context.ask("price.wanted", item)

    @shop.on("price.wanted")
    async def price(item: str) -> int:
        return 5

    settings = direct(database, telemetry=True)
    async with running([desk, shop], settings), connect(settings) as stream:
        await ready(database, "desk.bill", "shop.price")
        assert await stream.ask("bill.wanted", "pen") == 5
        reply_to = (await stream.read("price.wanted"))[0].headers["reply_to"]
    asked, handled = named(spans, "send price.wanted"), named(spans, "process price.wanted")
    assert asked.parent.span_id == named(spans, "process bill.wanted").context.span_id
    assert handled.parent.span_id == asked.context.span_id
    assert named(spans, f"send {reply_to}").parent.span_id == handled.context.span_id
    assert len({span.context.trace_id for span in spans.get_finished_spans()}) == 1


async def test_a_step_has_a_span_where_it_runs_and_none_where_its_result_is_kept(
    database: str, spans: InMemorySpanExporter
) -> None:
    agent, ended = Agent("shop"), anyio.Event()

    async def charge() -> int:
        with trace.get_tracer("user").start_as_current_span("calling"):
            return 1

    async def fail() -> None:
        raise KeyError("a secret")

    @agent.on("order.placed", retry=Retry(attempts=2, first_seconds=0, cap_seconds=0))
    async def sell(order: int, context: Context) -> None:
        await context.step("charge", charge)
        with pytest.raises(KeyError):
            await context.step(f"fail {context.attempt}", fail)
        if context.attempt == 1:
            raise ValueError("once more")
        ended.set()

    settings = direct(database, telemetry=True)
    async with running([agent], settings), connect(settings) as stream:
        await ready(database, "shop.sell")
        await stream.send("order.placed", 7)
        with anyio.fail_after(60):
            await ended.wait()
    step = named(spans, "step charge")
    failed = named(spans, "step fail 1")
    assert failed.attributes["error.type"] == "KeyError"
    assert "secret" not in failed.to_json()
    assert named(spans, "calling").parent.span_id == step.context.span_id
    attempts = [span for span in spans.get_finished_spans() if span.name == "process order.placed"]
    assert step.parent.span_id == min(attempts, key=lambda span: span.start_time).context.span_id


async def test_an_attempt_that_goes_on_is_linked_with_the_suspended_one_and_with_what_ended_its_wait(
    database: str, spans: InMemorySpanExporter
) -> None:
    agent, ended = Agent("shop"), anyio.Event()

    @agent.on("order.placed")
    async def sell(order: int, context: Context) -> None:
        await context.wait_for("payment.settled", timeout="1h")
        # A shorter sleep would go by within the process.
        await context.sleep(2.01)
        ended.set()

    settings = direct(database, telemetry=True)
    async with running([agent], settings), connect(settings) as stream, connected(database) as connection:
        await ready(database, "shop.sell")
        await stream.send("order.placed", 7)
        await until(partial(is_suspended, connection), seconds=60)
        await stream.send("payment.settled")
        with anyio.fail_after(60):
            await ended.wait()
    found = [span for span in spans.get_finished_spans() if span.name == "process order.placed"]
    first, *others = sorted(found, key=lambda span: span.start_time)
    paid = named(spans, "send payment.settled").context.span_id
    linked = [[link.context.span_id for link in span.links] for span in (first, *others)]
    assert linked[0] == []
    assert all({first.context.span_id, paid} <= set(links) for links in linked[1:])
    # The last one goes on after the sleep, which another attempt has begun.
    [slept] = set(linked[-1]) - {first.context.span_id, paid}
    assert slept in [span.context.span_id for span in others[:-1]]


async def test_a_request_in_a_step_that_suspends_the_handler_is_no_error_of_the_step(
    database: str, spans: InMemorySpanExporter
) -> None:
    agent, ended, opened = Agent("shop"), anyio.Event(), anyio.Event()

    @agent.on("price.wanted")
    async def price(item: str) -> int:
        await opened.wait()
        return 3

    @agent.on("order.placed")
    async def sell(order: int, context: Context) -> None:
        await context.step("price", partial(context.ask, "price.wanted", "tea", timeout=None))
        ended.set()

    settings = direct(database, telemetry=True)
    async with running([agent], settings), connect(settings) as stream, connected(database) as connection:
        await ready(database, "shop.sell", "shop.price")
        await stream.send("order.placed", 7)
        await until(partial(is_suspended, connection), seconds=60)
        opened.set()
        with anyio.fail_after(60):
            await ended.wait()
    steps = [span for span in spans.get_finished_spans() if span.name == "step price"]
    assert len(steps) >= 2
    assert {(span.status.status_code, span.attributes.get("error.type")) for span in steps} == {
        (trace.StatusCode.UNSET, None)
    }


async def test_one_trace_leads_through_agents_of_two_processes(
    database: str, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    first, last = Agent("first"), Agent("last")
    ended = anyio.Event()

    @first.on("note.found", emits="draft.written")
    async def write(text: str) -> str:
        with trace.get_tracer("user").start_as_current_span("thinking"):
            return text

    @last.on("draft.approved")
    def publish(text: str, context: Context) -> None:
        anyio.from_thread.run_sync(ended.set)

    told: list[Any] = []

    async def listen(process: Any) -> None:
        text = b""
        async for part in process.stdout:
            text += part
            *lines, text = text.split(b"\n")
            told.extend(json.loads(line) for line in lines if line)

    settings = direct(database, telemetry=True)
    (tmp_path / "other.py").write_text(OTHER)
    command = [sys.executable, str(tmp_path / "other.py"), database]
    async with await anyio.open_process(command, stderr=None) as process, anyio.create_task_group() as tasks:
        tasks.start_soon(listen, process)
        try:
            async with running([first, last], settings), connect(settings) as stream:
                await ready(database, "first.write", "other.approve", "last.publish")
                await stream.send("note.found", "private text")
                with anyio.fail_after(60):
                    await ended.wait()
                await until(lambda: len(told) == 2)
        finally:
            process.kill()
            tasks.cancel_scope.cancel()

    send, write_span = named(spans, "send note.found"), named(spans, "process note.found")
    emit, last_span = named(spans, "send draft.written"), named(spans, "process draft.approved")
    theirs = {each["name"]: each for each in told}
    approve, approved = theirs["process draft.written"], theirs["send draft.approved"]
    # From cause to effect, each the child of the one before.
    assert send.parent is None
    assert write_span.parent.span_id == send.context.span_id
    assert named(spans, "thinking").parent.span_id == write_span.context.span_id
    assert emit.parent.span_id == write_span.context.span_id
    assert int(approve["parent_id"], 16) == emit.context.span_id
    assert approved["parent_id"] == approve["context"]["span_id"]
    assert last_span.parent.span_id == int(approved["context"]["span_id"], 16)
    assert {span.context.trace_id for span in spans.get_finished_spans()} == {
        int(each["context"]["trace_id"], 16) for each in told
    }
    assert (send.kind.name, write_span.kind.name) == ("PRODUCER", "CONSUMER")
    attributes = dict(write_span.attributes)
    assert attributes["messaging.system"] == "agent_runtime"
    assert attributes["messaging.operation.type"] == "process"
    assert attributes["messaging.destination.name"] == "note.found"
    assert attributes["messaging.consumer.group.name"] == "first.write"
    assert attributes["messaging.message.id"] == "1"
    assert not any("private text" in span.to_json() for span in spans.get_finished_spans())


async def test_a_failure_marks_its_span_by_its_type_alone_and_is_counted(
    database: str, spans: InMemorySpanExporter, exporters: Any
) -> None:
    agent = Agent("clumsy")

    @agent.on("fall", retry=Retry(attempts=1))
    async def fall(value: str, context: Context) -> None:
        ids.append(current_ids())
        context.usage(tokens_in=7, tokens_out=2, cost=0.25, model="m")
        context.usage(tokens_in=3, model="n")
        raise ValueError(f"bad {value}")

    ids: list[dict[str, str]] = []
    settings = direct(database, telemetry=True)
    async with running([agent], settings) as worker, connect(settings) as stream:
        await ready(database, "clumsy.fall")
        # Whatever a stranger writes there breaks nothing.
        await stream.send("fall", "secret", headers={"traceparent": "nonsense", "tracestate": "x"})
        await until(lambda: len(worker.attempts) == 1)  # type: ignore[attr-defined]
    span = named(spans, "process fall")
    assert span.parent is None
    assert span.attributes["error.type"] == "ValueError"
    assert span.status.status_code.name == "ERROR"
    assert "secret" not in span.to_json()
    # A failed call of a model is paid for, too.
    assert {name: told for name, told in span.attributes.items() if "usage" in name or name.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "clumsy", "gen_ai.conversation.id": "1",
        "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 2, "gen_ai.request.model": "m, n",
        "agent_runtime.usage.cost": 0.25,
    }  # fmt: skip
    assert ids == [{"trace_id": f"{span.context.trace_id:032x}", "span_id": f"{span.context.span_id:016x}"}]
    data = exporters[1].get_metrics_data()
    counted = {
        metric.name: [point.attributes for point in metric.data.data_points]
        for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    }  # fmt: skip
    told = counted["gen_ai.client.token.usage"]
    assert sorted((each["gen_ai.request.model"], each["gen_ai.token.type"]) for each in told) == [
        ("m", "input"), ("m", "output"), ("n", "input"),
    ]  # fmt: skip
    for name in ("messaging.client.consumed.messages", "messaging.process.duration"):
        assert any(point.get("error.type") == "ValueError" for point in counted[name])
    assert any(
        point["messaging.destination.name"] == "fall" for point in counted["messaging.client.sent.messages"]
    )


async def test_each_message_of_a_batch_has_a_span_in_its_own_trace_and_so_has_what_it_caused(
    database: str, spans: InMemorySpanExporter
) -> None:
    agent = Agent("many")

    @agent.on("one.of.many", batch=2, within=30)
    async def take(messages: list[Message[int]], context: BatchContext) -> None:
        with trace.get_tracer("user").start_as_current_span("thinking"):
            context.usage(tokens_out=5)
            for message in messages:
                context.emit(f"caused.by.{message.value}", 0, cause=message)

    settings = direct(database, telemetry=True)
    async with running([agent], settings) as worker, connect(settings) as stream:
        await ready(database, "many.take")
        for number in range(2):
            await stream.send("one.of.many", number)
        await until(lambda: len(worker.attempts) == 2)  # type: ignore[attr-defined]
        told = [attempt.report.usage for attempt in worker.attempts]  # type: ignore[attr-defined]
        # That of the whole call, told once.
        assert sorted(told, key=str) == [None, {"tokens_out": 5}]
    batch = named(spans, "process many.take")
    assert batch.attributes["messaging.batch.message_count"] == 2
    assert named(spans, "thinking").parent.span_id == batch.context.span_id
    found = spans.get_finished_spans()
    sends = sorted(
        (span for span in found if span.name == "send one.of.many"), key=lambda span: span.start_time
    )
    processed = {span.parent.span_id: span for span in found if span.name == "process one.of.many"}
    assert {link.context.span_id for link in batch.links} == {
        span.context.span_id for span in processed.values()
    }
    for number, send in enumerate(sends):
        emit = named(spans, f"send caused.by.{number}")
        assert emit.parent.span_id == processed[send.context.span_id].context.span_id
        assert emit.context.trace_id == send.context.trace_id != batch.context.trace_id


def test_a_draft_that_carries_more_headers_keeps_the_value_it_was_made_with() -> None:
    value = {"n": 1}
    draft = Draft("a", value, headers={"kept": True}, delay=2)
    value["n"] = 2
    assert draft.carrying({"traceparent": "t"}).as_dict() == {
        "key": "a", "delay": 2, "headers": {"kept": True, "traceparent": "t"}, "value": {"n": 1},
    }  # fmt: skip
    assert draft.as_dict()["headers"] == {"kept": True}
