"""Does every record say which attempt it is from, whoever wrote it, and no other record?"""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from runtime import Agent, Context, Message
from runtime.cli.output import start_logs
from runtime.worker.execution.log_context import of_attempt
from tests.worker.execution.test_executor import Stage

pytestmark = pytest.mark.anyio

foreign = logging.getLogger("shop.packing")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, by any logger, as a handler of the log with the filter sees it."""
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(of_attempt)
    yield caplog
    caplog.handler.removeFilter(of_attempt)


def told(record: logging.LogRecord) -> tuple[Any, ...]:
    return tuple(
        getattr(record, name, None) for name in ("agent", "handler", "key", "message_id", "attempt", "worker")
    )


async def test_records_of_tasks_threads_and_libraries_are_bound_to_their_attempt(
    log: pytest.LogCaptureFixture,
) -> None:
    agent = Agent("a")

    @agent.middleware
    async def say(context: Context, call_next: Any) -> Any:
        foreign.info("around")
        return await call_next()

    @agent.on("a.b")
    async def work(value: int) -> None:
        foreign.info("itself")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log_in_task)
        await anyio.to_thread.run_sync(foreign.info, "in a thread of it")

    async def log_in_task() -> None:
        # Others run in between.
        await anyio.sleep(0.01)
        foreign.info("in a task of it")

    @agent.on("a.b")
    def plain(value: int) -> None:
        foreign.info("plain")

    async with Stage(agent, {}).open() as it:
        it.give("work", 1, 2, attempt=3)
        it.give("plain", 3)
        await it.reported(3)
        foreign.info("outside")
    by_text: dict[str, set[tuple[Any, ...]]] = {}
    for record in log.records:
        by_text.setdefault(record.getMessage(), set()).add(told(record))
    both = {("a", "a.work", "a.b", number, 3, "w") for number in (1, 2)}
    one = {("a", "a.plain", "a.b", 3, 1, "w")}
    assert by_text.pop("outside") == {(None,) * 6}
    assert by_text.pop("around") == both | one
    assert by_text.pop("plain") == one
    assert set(by_text) == {"itself", "in a task of it", "in a thread of it"}
    assert all(found == both for found in by_text.values())


async def test_records_of_a_batch_name_its_messages(log: pytest.LogCaptureFixture) -> None:
    agent = Agent("a")

    @agent.on("a.b", batch=2)
    async def work(messages: list[Message[int]]) -> None:
        foreign.info("together")

    async with Stage(agent, {}).open() as it:
        it.give("work", 1, 2)
        await it.reported(2)
    (record,) = [each for each in log.records if each.getMessage() == "together"]
    assert record.__dict__["message_ids"] == [1, 2]
    assert told(record)[:2] == ("a", "a.work")


async def test_what_a_record_says_itself_stays(log: pytest.LogCaptureFixture) -> None:
    agent = Agent("a")

    @agent.on("a.b")
    async def work(value: int) -> None:
        foreign.info("mine", extra={"key": "my own"})

    async with Stage(agent, {}).open() as it:
        it.give("work", 1)
        await it.reported()
    (record,) = [each for each in log.records if each.getMessage() == "mine"]
    assert told(record)[:4] == ("a", "a.work", "my own", 1)


@pytest.mark.parametrize("as_json", [True, False])
async def test_the_log_of_a_worker_shows_it(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent("a")

    @agent.on("a.b")
    async def work(value: int, context: Context) -> None:
        foreign.warning("the shelf is empty")
        context.log.info("packed")
        if context.attempt == 1:
            raise ValueError("no")

    start_logs("info", as_json=as_json)
    async with Stage(agent, {}).open() as it:
        it.give("work", 7)
        await it.reported(1)
        it.give("work", 7, attempt=2)
        await it.reported(2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    if as_json:
        for line, attempt in zip(lines, (1, 1, 1, 2, 2), strict=True):
            found = json.loads(line)
            assert (found["agent"], found["handler"], found["key"]) == ("a", "a.work", "a.b")
            assert (found["message_id"], found["attempt"]) == (attempt, attempt)
    else:
        shown = [line.partition("  ")[2] for line in lines]
        assert shown[0] == "warning a.work #1  the shelf is empty"
        assert shown[1] == "info    a.work #1  packed"
        # The runtime's own words name the handler and the message themselves.
        assert shown[2].startswith("warning a.work failed on message 1")
        assert shown[4] == "info    a.work #2, attempt 2  packed"


def test_a_json_record_holds_the_traceback_and_what_the_code_gives_beside_the_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_logs("info", as_json=True)
    shelf = object()
    try:
        raise ValueError("no \ud800")
    except ValueError:
        foreign.exception(
            "two\nlines", extra={"order": 7, "shelf": shelf, "level": "theirs", "box": {(1,): 2}}
        )
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"], record["message"]) == ("ERROR", "shop.packing", "two\nlines")
    assert (record["order"], record["shelf"], record["box"]) == (7, str(shelf), {})
    assert datetime.fromisoformat(record["timestamp"]).tzinfo is UTC
    assert record["exc_info"].startswith("Traceback")
    assert "ValueError: no" in record["exc_info"]
    assert record.keys() == {"level", "logger", "message", "timestamp", "exc_info", "order", "shelf", "box"}
