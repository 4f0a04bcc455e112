"""Mistakes of a handler's code: each is told with the user's line, and what no retry can mend is dead at once."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from runtime import Context, Retry
from runtime.cli.output import start_logs
from runtime.errors import AskError
from runtime.worker.execution.mistakes import recognized
from tests.worker.execution.test_executor import stage

pytestmark = pytest.mark.anyio


class Thing:
    """It has no JSON form."""


async def some() -> str:
    return "hidden"


def emit_awaited(context: Context) -> Any:
    async def work() -> None:
        await context.emit("a.c", 1)  # type: ignore[func-returns-value]

    return work()


def misspelt(context: Context) -> Any:
    context.emit("a.c", 1, delays=3)  # type: ignore[call-arg]


def misspelt_ask(context: Context) -> Any:
    return context.ask("a.c", 1, timout=3)  # type: ignore[call-arg]


def no_key(context: Context) -> Any:
    context.emit("key with spaces", 1)


def no_seconds(context: Context) -> Any:
    context.emit("a.c", 1, delay="30s")  # type: ignore[arg-type]


def no_text(context: Context) -> Any:
    context.emit("a.c", 1, dedup_key=5)  # type: ignore[arg-type]


def unknown_name(context: Context) -> Any:
    return undefined  # type: ignore[name-defined] # noqa: F821


def unfinished(context: Context) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (emit_awaited, "emit is not awaited"),
        (misspelt, "context.emit(…) takes no delays=…; did you mean delay?"),
        (misspelt_ask, "context.ask(…) takes no timout=…; did you mean timeout?"),
        (no_key, "'key with spaces' is not a key"),
        (no_seconds, "delay must be a number of seconds, not '30s'"),
        (no_text, "dedup_key must be a text, not 5"),
        (unknown_name, "NameError: name 'undefined' is not defined"),
        (unfinished, "NotImplementedError"),
        (lambda _: Thing(), "test_mistakes.Thing, which has no JSON form"),
    ],
    ids=lambda each: getattr(each, "__name__", "") or None,
)
async def test_a_fault_of_the_code_is_dead_at_once_and_told_with_its_line(
    mistake: Callable[[Context], Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(context: Context) -> Any:
        result = mistake(context)
        return await result if hasattr(result, "__await__") else result

    async with stage(work, emits="a.d").open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert report.outcome == "dead"
    assert words in str(report.error)
    [line] = [each.getMessage() for each in caplog.records if "failed on" in each.getMessage()]
    assert f"{__file__}:" in line
    assert "runtime/worker" not in line


async def test_a_returned_coroutine_is_told_with_the_line_of_its_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(value: int) -> Any:
        return some()

    async with stage(work).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert report.outcome == "dead"
    where = f"{__file__}:{work.__code__.co_firstlineno}, work"
    assert (
        f"a.work returned a coroutine instead of its result: `await` what you return ({where})" in caplog.text
    )


async def test_what_another_attempt_may_mend_is_tried_again() -> None:
    async def unbound(value: int) -> None:
        if value > 1:
            found = 1
        print(found)

    async def named(value: int) -> None:
        raise NotImplementedError

    async with stage(unbound).open() as it:
        it.give("unbound", 1)
        assert [each.outcome for each in await it.reported()] == ["failed"]
    async with stage(named, retry=Retry(on=(NotImplementedError,))).open() as it:
        it.give("named", 1)
        assert [each.outcome for each in await it.reported()] == ["failed"]


async def test_a_promised_value_that_is_none_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async def forgets(value: int) -> str:  # type: ignore[empty-body]
        pass

    async def may_be_none(value: int) -> "str | None":
        return None

    async with stage(forgets, may_be_none, emits="a.c").open() as it:
        it.give("forgets", 1, 2)
        it.give("may_be_none", 1)
        await it.reported(3)
    [line] = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert line.startswith("a.forgets returned None, so nothing is written under a.c")
    assert f"{__file__}:" in line


async def test_a_traceback_holds_the_user_s_frames_and_counts_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def work(value: int) -> None:
        json.loads("{oops")

    start_logs("info", as_json=False)
    async with stage(work, retry=Retry(attempts=1)).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert "frames of the runtime)" in str(report.traceback)
    assert "/runtime/worker/" not in str(report.traceback)
    # Libraries below the user's line are shown: that is where it broke.
    assert "json/decoder.py" in str(report.traceback)
    printed = capsys.readouterr().err
    assert f'File "{__file__}", line {work.__code__.co_firstlineno + 1}, in work' in printed


def test_other_type_errors_are_left_as_they_are() -> None:
    assert recognized(TypeError("Context.emit() is not the text of a call")) is not None
    assert recognized(TypeError("unsupported operand")) is None
    assert recognized(AskError("no", "a", None)) is None
