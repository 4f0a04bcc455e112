"""What comes of a handler, whatever it does? The runner on a loop of its own, without a store."""

import asyncio
import contextvars
import dataclasses
import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from runtime import Agent, Context, Message, Reject, Retry, RetryLater
from runtime.store import Delivery, Report
from runtime.worker.execution.attempt import Attempt
from runtime.worker.execution.executor import Executor
from runtime.worker.execution.failure import storable
from runtime.worker.execution.services import HandlerServices

pytestmark = pytest.mark.anyio


@dataclass
class Stage:
    """A runner with the handlers of one agent, and what it reported."""

    agent: Agent
    limits: dict[str, int]
    observer: Callable[[Attempt], None] | None = None
    states: dict[str, Any] | None = None
    reports: list[Report] = field(default_factory=list)
    changed: anyio.Event = field(default_factory=anyio.Event)
    _id: int = 0

    def report(self, report: Report) -> None:
        """Note it."""
        self.reports.append(report)
        self.changed.set()
        self.changed = anyio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Stage"]:
        """Run what is given until the block ends."""
        async with anyio.create_task_group() as tasks:
            limits = {handler.name: self.limits.get(handler.name, 10) for handler in self.agent.handlers}
            self.runner = Executor(
                tasks,
                self.agent.handlers,
                limits,
                HandlerServices("w", {self.agent.name: None} if self.states is None else self.states),
                observers=() if self.observer is None else (self.observer,),
            )
            self.numbers = {handler.name: n for n, handler in enumerate(self.agent.handlers, 1)}
            self.runner.know(self.numbers, self.report)
            yield self
            tasks.cancel_scope.cancel()

    def give(self, name: str, *values: Any, attempt: int = 1, crashes: int = 0) -> None:
        """Hand over one delivery per value."""
        for value in values:
            self._id += 1
            message: Message[Any] = Message(id=self._id, key="a.b", value=value, attempt=attempt)
            number = self.numbers[f"{self.agent.name}.{name}"]
            self.runner.hand_over([Delivery(number, message, f"lease {self._id}", crashes)])

    async def reported(self, count: int = 1) -> list[Report]:
        """Wait for so many reports."""
        with anyio.fail_after(60):
            while len(self.reports) < count:
                await self.changed.wait()
        assert len(self.reports) == count
        return self.reports


def stage(
    *functions: Any, limits: dict[str, int] | None = None, observer: Any = None, **options: Any
) -> Stage:
    agent = Agent("a")
    for function in functions:
        agent.on("a.b", **options)(function)
    return Stage(agent, limits or {}, observer)


async def test_async_handlers_run_on_the_loop_and_plain_ones_in_threads() -> None:
    where: dict[str, threading.Thread] = {}

    async def on_loop(value: int) -> None:
        where["async"] = threading.current_thread()

    def in_thread(value: int) -> None:
        where["sync"] = threading.current_thread()

    async with stage(on_loop, in_thread).open() as it:
        it.give("on_loop", 1)
        it.give("in_thread", 1)
        await it.reported(2)
    assert where["async"] is threading.main_thread()
    assert where["sync"] is not threading.main_thread()
    assert all(report.outcome is None for report in it.reports)


class Value:
    """Something that can be seen to go."""


async def test_an_idle_handler_keeps_no_task_and_nothing_of_its_last_delivery() -> None:
    tasks: list[weakref.ref[Any]] = []
    alive: list[weakref.ref[Value]] = []

    async def work(message: Message[Any]) -> None:
        tasks.append(weakref.ref(asyncio.current_task()))
        alive.append(weakref.ref(message.value))

    async with stage(work).open() as it:
        for count in range(1, 4):
            it.give("work", Value())
            await it.reported(count)
            await anyio.wait_all_tasks_blocked()
            it.reports = [dataclasses.replace(each, delivery=None) for each in it.reports]  # type: ignore[arg-type]
            gc.collect()
            assert it.runner.running == []
            assert [each() for each in alive] == [None] * count
            assert [each() for each in tasks] == [None] * count


@pytest.mark.parametrize("at_once", [True, False], ids=["with the next", "before the next"])
async def test_a_task_that_is_cancelled_after_its_attempt_takes_nobody_with_it(at_once: bool) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def work(value: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)

    async with stage(work).open() as it:
        for count in range(1, 4):
            it.give("work", count)
            await it.reported(count)
            await anyio.wait_all_tasks_blocked()
            tasks[-1].cancel()
            if not at_once:
                await anyio.wait_all_tasks_blocked()
        await anyio.wait_all_tasks_blocked()
        assert it.runner.running == []
    # A group that was cancelled ends without a word.
    assert [report.outcome for report in it.reports] == [None] * 3


async def test_handlers_that_ran_together_leave_no_task_behind() -> None:
    tasks: list[asyncio.Task[Any] | None] = []
    together = anyio.Event()

    async def work(value: int) -> None:
        tasks.append(asyncio.current_task())
        if len(tasks) == 3:
            together.set()
        await together.wait()

    async with stage(work).open() as it:
        it.give("work", 1, 2, 3)
        await it.reported(3)
        await anyio.wait_all_tasks_blocked()
        assert [task.done() for task in tasks if task is not None] == [True] * 3
        it.give("work", 4)
        await it.reported(4)


async def test_parameters_are_filled_and_what_is_returned_and_emitted_is_reported_in_order() -> None:
    async def work(value: int, message: Message[int], context: Context) -> int:
        context.emit("x.y", [value, message.id])
        return value + 1

    async with stage(work, emits="a.c").open() as it:
        it.give("work", 41)
        [report] = await it.reported()
    assert report.seconds > 0
    assert ['"x.y"' in emit for emit in report.emits] == [True, False]
    assert "42" in report.emits[1]


async def test_g5_a_failure_is_tried_again_until_its_attempts_are_used_up() -> None:
    async def work(value: int) -> None:
        raise ValueError("no")

    async with stage(work, retry=Retry(attempts=3, first_seconds=2)).open() as it:
        it.give("work", 1, attempt=1)
        it.give("work", 1, attempt=3)
        # Two crashes before it used up none of its attempts.
        it.give("work", 1, attempt=3, crashes=2)
        one, last, after_crashes = await it.reported(3)
    assert (one.outcome, one.error) == ("failed", "ValueError: no")
    assert one.delay is not None
    assert 0 <= one.delay <= 2
    assert one.traceback is not None
    assert "raise ValueError" in one.traceback
    assert (last.outcome, last.reason, last.delay) == ("dead", "failed", None)
    assert after_crashes.outcome == "failed"


async def test_g5_a_rejection_is_dead_at_once_and_later_counts_nothing() -> None:
    async def work(value: int) -> None:
        raise Reject("never") if value == 1 else RetryLater(7, "busy")

    async with stage(work).open() as it:
        it.give("work", 1, 2)
        rejected, later = await it.reported(2)
    assert (rejected.outcome, rejected.reason) == ("dead", "rejected")
    assert (later.outcome, later.delay) == ("later", 7)


async def test_g5_a_value_of_the_wrong_kind_is_dead_at_once_in_pydantics_words() -> None:
    async def work(value: int) -> None: ...

    async with stage(work).open() as it:
        it.give("work", "seven")
        [report] = await it.reported()
    assert (report.outcome, report.reason) == ("dead", "invalid")
    assert report.error is not None
    assert "valid integer" in report.error
    assert "seven" not in report.error


async def test_a_handler_past_its_timeout_has_failed_in_a_task_and_in_a_thread() -> None:
    release = threading.Event()

    async def in_task(value: int) -> None:
        await anyio.sleep_forever()

    def in_thread(value: int) -> None:
        release.wait(10)

    async with stage(in_task, in_thread, timeout=0.05, limits={"a.in_thread": 1}).open() as it:
        it.give("in_task", 1)
        it.give("in_thread", 1)
        await it.reported(2)
        release.set()
        # The slot of the thread that ran on is free again.
        it.give("in_thread", 2)
        reports = await it.reported(3)
    assert [report.outcome for report in reports[:2]] == ["failed", "failed"]
    assert all("TimeoutError" in str(report.error) for report in reports[:2])
    assert reports[2].outcome is None


@pytest.mark.parametrize("where", ["task", "thread"])
async def test_a_handler_that_exits_the_process_has_failed_and_the_worker_lives(where: str) -> None:
    async def in_task(value: int) -> None:
        if value:
            sys.exit(3)

    def in_thread(value: int) -> None:
        if value:
            sys.exit(3)

    async with stage(in_task, in_thread).open() as it:
        it.give(f"in_{where}", 1, 0)
        reports = await it.reported(2)
    assert sorted(str(report.outcome) for report in reports) == ["None", "failed"]
    assert {report.error for report in reports} == {None, "SystemExit: 3"}


async def test_a_base_exception_group_is_a_failure() -> None:
    async def work(value: int) -> None:
        raise BaseExceptionGroup("several", [SystemExit(1), ValueError("no")])

    async with stage(work).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert report.outcome == "failed"
    assert "several" in str(report.error)


async def test_a_handler_that_cancels_itself_or_awaits_what_was_cancelled_has_failed() -> None:
    async def work(value: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        if value == "cancels itself":
            task.cancel()
            await anyio.sleep(10)
        elif value == "cancels itself and returns":
            task.cancel()
        elif value == "awaits":
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        else:
            await anyio.sleep(0.001)

    async with stage(work, limits={"a.work": 1}).open() as it:
        it.give(
            "work", "cancels itself", "fine", "awaits", "fine", "cancels itself and returns", "fine", "fine"
        )
        reports = await it.reported(7)
    assert [report.outcome for report in reports] == ["failed", None, "failed", None, None, None, None]


async def test_what_one_attempt_sets_in_a_context_variable_the_next_does_not_see() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")
    seen: list[str] = []

    async def on_loop(value: int) -> None:
        seen.append(variable.get())
        token = variable.set("dirty")
        await anyio.sleep(0.001)
        assert variable.get() == "dirty"
        if value == 2:
            variable.reset(token)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0.001)

    def in_thread(value: int) -> None:
        seen.append(variable.get())
        variable.set("dirty")

    async with stage(on_loop, in_thread, limits={"a.on_loop": 1, "a.in_thread": 1}).open() as it:
        it.give("on_loop", 1, 2, 3)
        it.give("in_thread", 1, 2, 3)
        reports = await it.reported(6)
    assert [report.outcome for report in reports] == [None] * 6
    assert seen == ["clean"] * 6


async def test_g6_concurrency_is_held_for_each_handler_and_a_slow_one_delays_no_other() -> None:
    running = most = 0
    go = anyio.Event()

    async def slow(value: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1

    async def quick(value: int) -> None: ...

    async with stage(slow, quick, limits={"a.slow": 3}).open() as it:
        it.give("slow", *range(10))
        it.give("quick", *range(20))
        await it.reported(20)
        await anyio.wait_all_tasks_blocked()
        assert running == 3
        go.set()
        await it.reported(30)
    assert most == 3


async def test_threads_are_limited_for_each_handler() -> None:
    lock, running, most = threading.Lock(), 0, 0
    go = threading.Event()

    def slow(value: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go.wait(5)
        with lock:
            running -= 1

    def quick(value: int) -> None: ...

    async with stage(slow, quick, limits={"a.slow": 2}).open() as it:
        it.give("slow", *range(6))
        it.give("quick", *range(10))
        await it.reported(10)
        with anyio.fail_after(60):
            while running < 2:
                await anyio.sleep(0.005)
        go.set()
        await it.reported(16)
    assert most == 2


async def test_g9_what_has_not_begun_is_given_back_and_what_runs_may_finish() -> None:
    go = anyio.Event()

    async def work(value: int) -> None:
        await go.wait()

    async with stage(work, limits={"a.work": 1}).open() as it:
        it.give("work", 1, 2, 3)
        await anyio.wait_all_tasks_blocked()
        it.runner.stop_waiting()
        reports = await it.reported(2)
        assert [report.outcome for report in reports] == ["released", "released"]
        go.set()
        reports = await it.reported(3)
        assert reports[2].outcome is None


async def test_g9_what_is_cancelled_in_the_end_is_given_back() -> None:
    cleaned: list[str] = []

    async def work(value: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("up")

    def in_thread(value: int) -> None:
        time.sleep(0.3)

    async with stage(work, in_thread).open() as it:
        it.give("work", 1)
        it.give("in_thread", 1)
        await anyio.sleep(0.05)
        it.runner.stop_waiting()
        it.runner.cancel()
        reports = await it.reported(2)
    assert [report.outcome for report in reports] == ["released", "released"]
    assert cleaned == ["up"]


async def test_an_observer_that_raises_does_not_end_the_work(caplog: pytest.LogCaptureFixture) -> None:
    def observe(attempt: Attempt) -> None:
        raise RuntimeError("an onlooker's fault")

    async def work(value: int) -> None: ...

    async with stage(work, observer=observe).open() as it:
        it.give("work", 1, 2)
        await it.reported(2)
    assert "the observer failed" in caplog.text


async def test_a_failure_is_logged_once_without_the_value(caplog: pytest.LogCaptureFixture) -> None:
    async def work(value: dict[str, str]) -> None:
        raise ValueError("no")

    with caplog.at_level(logging.INFO, "runtime"):
        async with stage(work).open() as it:
            it.give("work", {"password": "hush"})
            await it.reported()
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("runtime")]
    assert len(lines) == 1
    assert lines[0].startswith("a.work failed on message 1 (attempt 1): ValueError: no; trying again in")
    assert "hush" not in caplog.text


def test_an_error_text_can_be_stored_whatever_it_holds() -> None:
    assert storable("a\0b\ud800c", 100) == "a\N{REPLACEMENT CHARACTER}b?c"
    assert storable("x" * 50 + "the end", 10) == "… xxxthe end"


async def test_a_handler_that_is_called_off_is_cancelled_and_its_end_is_not_a_result() -> None:
    cleaned: list[str] = []
    release, go = threading.Event(), anyio.Event()

    async def on_loop(value: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("up")

    async def stubborn(value: int) -> int:
        with anyio.CancelScope(shield=True):
            await go.wait()
        return value

    def in_thread(value: int) -> int:
        release.wait(10)
        return value

    async with stage(on_loop, stubborn, in_thread, limits={"a.on_loop": 1}, emits="a.c").open() as it:
        held = [
            Delivery(it.numbers[f"a.{name}"], Message(id=number, key="a.b", value=1), f"lease {number}")
            for number, name in enumerate(["on_loop", "on_loop", "stubborn", "in_thread"], start=1)
        ]
        it.runner.hand_over(held)
        await anyio.wait_all_tasks_blocked()
        for _ in range(2):
            # Told until it has ended.
            it.runner.call_off(held)
        await it.reported(2)
        go.set()
        await it.reported(3)
        release.set()
        reports = await it.reported(4)
        assert {report.outcome for report in reports} == {"cancelled"}
        assert not any(report.emits for report in reports)
        # Too late: it has ended.
        it.runner.call_off(held)
        it.give("in_thread", 1)
        assert (await it.reported(5))[-1].outcome is None
    assert cleaned == ["up"]
