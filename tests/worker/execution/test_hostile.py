"""Does anything that a handler does end its worker? Exceptions of every kind and behaviour, on a runner of its own."""

import asyncio
import itertools
import json
import logging
import logging.config
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel, computed_field

from runtime import Agent, Context, Message, Reject, Retry, RetryLater, tracebacks
from runtime.errors import InvalidPayload
from runtime.store import Delivery
from runtime.tracebacks import places_of, text_of, trace_of
from runtime.worker import event_loop
from runtime.worker.execution.lifespan import Lifespans
from runtime.worker.execution.loggers import SteadyLogger, steady
from tests.worker.execution.test_executor import Stage, stage

pytestmark = pytest.mark.anyio


class Raises:
    """An attribute that raises whenever it is looked at, and when it is set."""

    def __init__(self, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.error = error

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        raise self.error("looked at")

    def __set__(self, instance: object, value: object) -> None:
        raise self.error("set")


class HostileName(type):
    """A metaclass whose classes have no name."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise SystemExit("no name")

    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise SystemExit("no module")

    def __subclasscheck__(cls, other: type) -> bool:
        raise KeyboardInterrupt

    def __instancecheck__(cls, other: object) -> bool:
        raise KeyboardInterrupt


class OddText(str):
    """A text that can be used for nothing."""

    def encode(self, *args: Any) -> bytes:
        raise SystemExit("encoded")

    def __len__(self) -> int:
        raise SystemExit("measured")

    def __format__(self, spec: str) -> str:
        raise SystemExit("formatted")


def cyclic() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def itself() -> BaseException:
    error = ValueError("itself")
    error.__context__ = error
    return error


def long_chain() -> BaseException:
    error = ValueError("0")
    for number in range(20_000):
        following = ValueError(str(number))
        following.__cause__, error = error, following
    return error


def deep_group() -> BaseException:
    group: BaseException = ValueError("deep")
    for _ in range(500):
        group = ExceptionGroup("level", [group, group])  # type: ignore[list-item]
    return group


def deep_traceback() -> BaseException:
    def again(left: int) -> None:
        if left:
            again(left - 1)
        raise RecursionError("at the bottom")

    try:
        again(800)
    except RecursionError as error:
        return error
    raise AssertionError


def noted() -> BaseException:
    error = ValueError("noted")
    error.__notes__ = [OddText("odd"), object(), 3]  # type: ignore[list-item]
    return error


def of_class(**members: Any) -> BaseException:
    kind = type("Odd", (Exception,), members)
    return kind("odd")


def raising(error: type[BaseException]) -> Any:
    def method(self: object, *args: Any) -> Any:
        raise error("asked")

    return method


HOSTILE: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "a kind of CancelledError": lambda: type("Mine", (asyncio.CancelledError,), {})(),
    "a kind of KeyboardInterrupt": lambda: type("Mine", (KeyboardInterrupt,), {})(),
    "a kind of GeneratorExit": lambda: type("Mine", (GeneratorExit,), {})(),
    "BaseException": lambda: BaseException("bare"),
    "BaseExceptionGroup": lambda: BaseExceptionGroup(
        "several", [KeyboardInterrupt(), asyncio.CancelledError()]
    ),
    "MemoryError": MemoryError,
    "no str": lambda: of_class(__str__=raising(ValueError)),
    "no str, and interrupts": lambda: of_class(__str__=raising(KeyboardInterrupt)),
    "str returns no text": lambda: of_class(__str__=lambda self: 3),
    "str returns None": lambda: of_class(__str__=lambda self: None),
    "str returns an odd text": lambda: of_class(__str__=lambda self: OddText("odd")),
    "no repr": lambda: of_class(__repr__=raising(SystemExit), __str__=raising(SystemExit)),
    "no class": lambda: of_class(__class__=Raises()),
    "another's class": lambda: of_class(__class__=property(lambda self: RetryLater)),
    "no cause": lambda: of_class(__cause__=Raises()),
    "endless causes": lambda: of_class(__cause__=property(lambda self: type(self)("again"))),
    "no context": lambda: of_class(__context__=Raises(), __suppress_context__=Raises()),
    "no traceback": lambda: of_class(__traceback__=Raises()),
    "no notes": lambda: of_class(__notes__=Raises(), add_note=raising(SystemExit)),
    "no args": lambda: of_class(args=Raises()),
    "no attributes": lambda: of_class(__getattribute__=raising(KeyboardInterrupt)),
    "no dict": lambda: of_class(__dict__=Raises()),
    "unequal": lambda: of_class(__eq__=raising(SystemExit), __hash__=raising(SystemExit)),
    "untrue": lambda: of_class(__bool__=raising(SystemExit), __len__=raising(SystemExit)),
    "no name": lambda: HostileName("Odd", (Exception,), {})("odd"),
    "odd notes": noted,
    "enormous": lambda: ValueError("x" * 50_000_000),
    "surrogates": lambda: ValueError("\ud800 \0"),
    "cyclic causes": cyclic,
    "its own context": itself,
    "a long chain": long_chain,
    "a deep group": deep_group,
    "a deep traceback": deep_traceback,
    "later without seconds": lambda: type("Mine", (RetryLater,), {"__init__": lambda self: None})(),
    "later, no number": lambda: type(
        "Mine", (RetryLater,), {"seconds": "soon", "__init__": lambda s: None}
    )(),
    "later, raising": lambda: type(
        "Mine", (RetryLater,), {"seconds": Raises(), "__init__": lambda s: None}
    )(),
    "rejected without a word": lambda: type("Mine", (Reject,), {"__str__": raising(SystemExit)})(),
}
hostile = pytest.mark.parametrize("make", HOSTILE.values(), ids=list(HOSTILE))


async def told(it: Stage, name: str) -> None:
    """Let the hostile one end, and see that the next is handled as if nothing had been."""
    it.give(name, "hostile", "fine")
    reports = {each.delivery.message.value: each for each in await it.reported(2)}
    assert reports["hostile"].outcome in ("failed", "dead")
    assert reports["hostile"].error
    assert len(reports["hostile"].error) <= 4_010
    assert len(reports["hostile"].traceback or "") <= 20_010
    json.dumps([reports["hostile"].error, reports["hostile"].traceback]).encode()
    assert reports["fine"].outcome is None


@hostile
@pytest.mark.parametrize("where", ["task", "thread", "batch"])
async def test_h1_whatever_a_handler_raises_is_a_failed_attempt(
    make: Callable[[], BaseException], where: str
) -> None:
    agent = Agent("a")

    @agent.on("a.b")
    async def in_task(value: str) -> None:
        await anyio.lowlevel.checkpoint()
        if value == "hostile":
            raise make()

    @agent.on("a.b")
    def in_thread(value: str) -> None:
        if value == "hostile":
            raise make()

    @agent.on("a.b", batch=1, within=0.01)
    async def in_batch(values: list[str]) -> None:
        if values == ["hostile"]:
            raise make()

    async with Stage(agent, {"a.in_task": 1, "a.in_thread": 1, "a.in_batch": 1}).open() as it:
        await told(it, f"in_{where}")


@hostile
@pytest.mark.parametrize("kind", ["before", "after", "plain", "middleware", "around"])
async def test_h1_whatever_a_provider_or_a_middleware_raises_is_a_failed_attempt(
    make: Callable[[], BaseException], kind: str
) -> None:
    agent = Agent("a")

    class Given: ...

    if kind == "plain":

        @agent.provide
        def given(context: Context) -> Given:
            if context.message.value == "hostile":
                raise make()
            return Given()

    else:

        @agent.provide
        async def given_async(context: Context) -> AsyncIterator[Given]:
            if kind == "before" and context.message.value == "hostile":
                raise make()
            yield Given()
            if kind == "after" and context.message.value == "hostile":
                raise make()

    @agent.middleware
    async def around(context: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
        if kind == "middleware" and context.message.value == "hostile":
            raise make()
        result = await call_next()
        if kind == "around" and context.message.value == "hostile":
            raise make()
        return result

    @agent.on("a.b")
    async def work(value: str, given: Given) -> None: ...

    async with Stage(agent, {"a.work": 1}).open() as it:
        await told(it, "work")


@hostile
async def test_h1_whatever_a_lifespan_raises_is_a_failed_start_or_end(
    make: Callable[[], BaseException],
) -> None:
    moved: list[str] = []
    entered = 0
    opened = anyio.Event()

    @asynccontextmanager
    async def bad_start() -> AsyncIterator[None]:
        nonlocal entered
        entered += 1
        if entered == 1:
            raise make()
        opened.set()
        yield

    @asynccontextmanager
    async def bad_end() -> AsyncIterator[None]:
        yield
        raise make()

    lifespans = Lifespans(
        {"start": bad_start, "end": bad_end, "plain": None}, moved=moved.append, give_up=lambda: None
    )
    async with lifespans.kept(lambda: 5.0):
        with anyio.fail_after(60):
            await opened.wait()
    assert entered == 2


@hostile
def test_h1_an_exception_is_told_in_bounds_whatever_it_is(make: Callable[[], BaseException]) -> None:
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - any at all
        raise make()
    assert len(text_of(raised.value)) < 25_000
    assert "Traceback" in trace_of(raised.value)
    assert len(trace_of(raised.value)) < 3_000_000
    assert any("test_hostile.py" in place for place in places_of(raised.value))


class Unwilling(Retry):
    """A retry that cannot decide."""

    def decide(self, error: BaseException, attempt: int, random: Random) -> float | None:
        raise SystemExit("no decision")


class Undecided(Retry):
    """A retry that decides nothing of use."""

    def decide(self, error: BaseException, attempt: int, random: Random) -> float | None:
        return float("nan")


@pytest.mark.parametrize(
    "retry",
    [
        Retry(on=(HostileName("Odd", (Exception,), {}),)),
        Retry(never_on=(HostileName("Odd", (Exception,), {}),)),
        Unwilling(),
        Undecided(),
    ],
    ids=["on", "never_on", "decide raises", "decides nothing"],
)
async def test_h1_a_retry_that_raises_is_no_more_than_a_failed_attempt(retry: Retry) -> None:
    async def work(value: str) -> None:
        if value == "hostile":
            raise ValueError("no")

    async with stage(work, retry=retry, limits={"a.work": 1}).open() as it:
        await told(it, "work")


@pytest.mark.parametrize("make", [SystemExit, KeyboardInterrupt, ValueError, GeneratorExit])
async def test_h1_an_observer_that_raises_anything_does_not_end_the_work(make: type[BaseException]) -> None:
    def observe(attempt: object) -> None:
        raise make("an onlooker's fault")

    async def work(value: int) -> None: ...

    async with stage(work, observer=observe).open() as it:
        it.give("work", 1, 2)
        assert [each.outcome for each in await it.reported(2)] == [None, None]


async def test_h1_a_result_whose_serializer_raises_is_a_failed_attempt() -> None:
    class Odd(dict[str, Any]):
        def items(self) -> Any:
            raise KeyboardInterrupt

        def __iter__(self) -> Iterator[str]:
            raise KeyboardInterrupt

    class Model:
        __pydantic_serializer__ = Raises()

    async def work(value: str) -> Any:
        return {"hostile": [Odd(a=1), Model()]} if value == "hostile" else value

    async with stage(work, emits="a.c", limits={"a.work": 1}).open() as it:
        await told(it, "work")


@pytest.fixture
def a_hostile_log() -> Iterator[None]:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    root, factory = logging.getLogger(), logging.getLogRecordFactory()

    def raising_factory(*args: Any, **named: Any) -> logging.LogRecord:
        if str(args[0]).startswith("runtime"):
            raise SystemExit("no record")
        return factory(*args, **named)

    steady()
    handler = Handler()
    root.addHandler(handler)
    logging.setLogRecordFactory(raising_factory)
    yield
    logging.setLogRecordFactory(factory)
    root.removeHandler(handler)


@pytest.mark.usefixtures("a_hostile_log")
async def test_h1_a_log_that_raises_does_not_end_the_work() -> None:
    async def work(value: str) -> None:
        if value == "hostile":
            raise ValueError("no")

    async with stage(work, limits={"a.work": 1}).open() as it:
        await told(it, "work")


async def test_h1_a_scope_that_is_left_open_reaches_no_other_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def abandoned() -> AsyncIterator[int]:
        with anyio.fail_after(0.01):
            yield 1
            yield 2

    kept: list[Any] = []

    async def work(value: str) -> None:
        if value == "hostile":
            numbers = abandoned()
            kept.append(numbers)
            await anext(numbers)
            raise ValueError("in the middle")
        await anyio.sleep(0.05)

    async with stage(work, limits={"a.work": 1}).open() as it:
        await told(it, "work")
        it.reports.clear()
        it.give("work", "fine", "fine")
        assert [each.outcome for each in await it.reported(2)] == [None, None]
    assert "left a cancel scope or a task group open" in caplog.text


@pytest.mark.parametrize("where", ["task", "batch"])
def test_h1_the_worker_s_own_tasks_are_out_of_a_handler_s_reach(where: str) -> None:
    mine: list[asyncio.Task[Any]] = []

    def no_tasks(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no tasks")

    async def reach(value: str) -> None:
        if value == "hostile":
            mine.append(asyncio.create_task(asyncio.sleep(60)))
            for each in asyncio.all_tasks():
                each.cancel()
            asyncio.get_running_loop().set_task_factory(no_tasks)

    async def main() -> None:
        agent = Agent("a")

        @agent.on("a.b")
        async def work(value: str) -> None:
            await reach(value)

        @agent.on("a.b", batch=2, within=0.01)
        async def works(values: list[str]) -> None:
            for value in values:
                await reach(value)

        name = {"task": "work", "batch": "works"}[where]
        async with Stage(agent, {name: 3}).open() as it:
            it.give(name, "hostile")
            [report] = await it.reported()
            it.reports.clear()
            it.give(name, "fine", "fine", "fine")
            await it.reported(3)
            asyncio.get_running_loop().set_task_factory(None)
        assert report.outcome in (None, "failed")
        assert mine[0].cancelled()

    event_loop.run(main)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("ending", ["returns", "exits", "raises"])
@pytest.mark.parametrize("where", ["task", "thread", "batch"])
async def test_h2_a_forked_child_that_comes_back_from_its_handler_ends(ending: str, where: str) -> None:
    children: list[int] = []
    agent = Agent("a")

    def fork() -> None:
        if child := os.fork():
            children.append(child)
        elif ending == "exits":
            sys.exit(3)
        elif ending == "raises":
            raise KeyboardInterrupt

    @agent.on("a.b")
    async def in_task(value: int) -> None:
        fork()

    @agent.on("a.b")
    def in_thread(value: int) -> None:
        fork()

    @agent.on("a.b", batch=1, within=0.01)
    async def in_batch(values: list[int]) -> None:
        fork()

    async with Stage(agent, {}).open() as it:
        it.give(f"in_{where}", 1)
        [report] = await it.reported()
        [child] = children
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
    assert report.outcome is None
    assert os.waitstatus_to_exitcode(status) == {"returns": 0, "exits": 3, "raises": 1}[ending]


@pytest.mark.parametrize("is_batch", [False, True], ids=["one", "batch"])
async def test_h3_the_slot_of_a_thread_that_runs_on_stays_taken(
    is_batch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    running, most = 0, 0
    lock = threading.Lock()
    agent = Agent("a")

    def count(value: str) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if value == "long":
            assert release.wait(60)
        with lock:
            running -= 1

    if is_batch:

        @agent.on("a.b", batch=1, within=0.01, timeout=0.2)
        def work(values: list[str]) -> None:
            count(values[0])

    else:

        @agent.on("a.b", timeout=0.2)
        def work(value: str) -> None:
            count(value)

    async with Stage(agent, {"a.work": 1}).open() as it:
        it.give("work", "long", "short")
        [report] = await it.reported()
        assert (report.outcome, report.error) == ("failed", "TimeoutError")
        assert it.runner.running == it.runner.left == ["a.work"]
        assert it.runner.room("a.work") == 0
        # A round of the loop in which it could begin.
        await anyio.sleep(0.3)
        assert len(it.reports) == 1
        release.set()
        assert (await it.reported(2))[1].outcome is None
        assert it.runner.left == []
    assert most == 1
    assert "runs on in its thread" in caplog.text


async def test_h3_what_waits_for_a_thread_that_does_not_end_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.worker.execution.executor._PATIENCE_SECONDS", 0.05)
    release = threading.Event()

    def work(value: int) -> None:
        assert release.wait(60)

    async with stage(work, timeout=0.1, limits={"a.work": 1}).open() as it:
        it.give("work", 1, 2, 3)
        reports = await it.reported(3)
        release.set()
    assert [each.outcome for each in reports] == ["failed", "released", "released"]


@pytest.mark.parametrize("how", ["revoke", "call_off"])
async def test_h3_a_thread_that_is_not_wanted_any_more_keeps_its_slot(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    release, begun = threading.Event(), threading.Event()

    def work(value: int) -> None:
        begun.set()
        assert release.wait(60)

    async with stage(work, limits={"a.work": 1}).open() as it:
        delivery = Delivery(it.numbers["a.work"], Message(id=1, key="a.b", value=1), "lease")
        it.runner.hand_over([delivery])
        await anyio.to_thread.run_sync(begun.wait, 30)
        getattr(it.runner, how)([delivery])
        await anyio.sleep(0.05)
        assert it.runner.running == ["a.work"]
        release.set()
        await it.reported()
    assert "runs on in its thread" in caplog.text


GROUPS: dict[str, tuple[Retry, BaseException, str, str | None]] = {
    "rejected": (Retry(), ExceptionGroup("g", [Reject("no")]), "dead", "rejected"),
    "deep": (Retry(), ExceptionGroup("g", [ExceptionGroup("h", [Reject("no")])]), "dead", "rejected"),
    "later": (Retry(), ExceptionGroup("g", [RetryLater(7)]), "later", None),
    "the longest": (Retry(), ExceptionGroup("g", [RetryLater(2), RetryLater(7)]), "later", None),
    "later and an error": (Retry(), ExceptionGroup("g", [RetryLater(7), ValueError()]), "later", None),
    "later and rejected": (Retry(), ExceptionGroup("g", [RetryLater(7), Reject()]), "dead", "rejected"),
    "on": (Retry(on=(OSError,)), ExceptionGroup("g", [OSError()]), "failed", "failed"),
    "not on": (Retry(on=(OSError,)), ExceptionGroup("g", [OSError(), ValueError()]), "dead", "failed"),
    "on the group": (Retry(on=(ExceptionGroup,)), ExceptionGroup("g", [ValueError()]), "failed", "failed"),
    "never": (Retry(never_on=(OSError,)), ExceptionGroup("g", [OSError()]), "dead", "failed"),
    "never, alone": (Retry(never_on=(SystemExit,)), SystemExit(1), "dead", "failed"),
    "never and later": (
        Retry(never_on=(OSError,)),
        ExceptionGroup("g", [OSError(), RetryLater(7)]),
        "dead",
        "failed",
    ),
    "never on the group": (
        Retry(never_on=(ExceptionGroup,)),
        ExceptionGroup("g", [OSError()]),
        "dead",
        "failed",
    ),
    "exits": (Retry(), BaseExceptionGroup("g", [SystemExit(1)]), "failed", "failed"),
    "invalid": (Retry(), ExceptionGroup("g", [InvalidPayload("no")]), "dead", "invalid"),
}


@pytest.mark.parametrize(("retry", "error", "outcome", "reason"), GROUPS.values(), ids=list(GROUPS))
@pytest.mark.parametrize("where", ["on", "batch"])
async def test_h6_what_is_raised_in_a_group_counts_as_if_alone(
    retry: Retry, error: BaseException, outcome: str, reason: str | None, where: str
) -> None:
    agent = Agent("a")

    if where == "on":

        @agent.on("a.b", retry=retry)
        async def work(value: int) -> None:
            raise error

    else:

        @agent.on("a.b", batch=2, within=0.01, retry=retry)
        async def work(values: list[int]) -> None:
            raise error

    async with Stage(agent, {}).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert (report.outcome, report.reason) == (outcome, reason)
    assert report.delay == 7 or outcome != "later"


class Thing:
    """It has no JSON form."""


class Raising(BaseModel):
    """It raises when it is written."""

    def __init__(self, kind: type[BaseException]) -> None:
        super().__init__()
        self._kind = kind

    @computed_field  # type: ignore[prop-decorator]
    @property
    def part(self) -> int:
        raise self._kind("hidden")


async def answer() -> str:
    return "hidden"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (Thing, "Thing, which has no JSON form"),
        (lambda: {"deep": [Thing()]}, r"value\['deep'\]\[0\] is of the type .*Thing, which has no JSON form"),
        (answer, "`await` what you return"),
        (lambda: [answer()], "is a coroutine: await it"),
        (lambda: {"all": itertools.islice(itertools.count(), 10**6)}, r"value\['all'\] is an iterator"),
        (lambda: [Raising(KeyError)], r"value\[0\] cannot be written, since its own class raised KeyError"),
    ],
    ids=["object", "deep", "coroutine", "coroutine inside", "iterator", "raising"],
)
@pytest.mark.parametrize("where", ["task", "thread", "batch"])
async def test_h7_a_result_that_cannot_be_written_is_dead_at_once(
    result: Callable[[], Any], words: str, where: str
) -> None:
    if result is answer and where == "thread":
        pytest.skip("what a plain function passes on is awaited for it")
    agent = Agent("a")

    @agent.on("a.b", emits="a.c")
    async def in_task(value: int) -> Any:
        return result()

    @agent.on("a.b", emits="a.c")
    def in_thread(value: int) -> Any:
        return result()

    @agent.on("a.b", batch=1, within=0.01, emits="a.c")
    async def in_batch(values: list[int]) -> Any:
        return [result() for _ in values]

    async with Stage(agent, {}).open() as it:
        it.give(f"in_{where}", 1)
        [report] = await it.reported()
    assert report.outcome == "dead"
    assert report.error is not None
    assert re.search(words, report.error), report.error
    assert "runtime_found_" not in report.error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, BaseException])
async def test_h1_a_value_that_raises_anything_when_it_is_written_fails_its_attempt(
    kind: type[BaseException],
) -> None:
    agent = Agent("a")

    @agent.on("a.b", emits="a.c")
    async def returns(value: int) -> Any:
        return Raising(kind)

    @agent.on("a.b")
    async def emits(value: int, context: Context) -> None:
        context.emit("a.c", Raising(kind))

    @agent.on("a.b", emits="a.c")
    def in_thread(value: int) -> Any:
        return Raising(kind)

    @agent.on("a.b", batch=2, within=0.01, emits="a.c")
    async def in_batch(values: list[int]) -> Any:
        return [Raising(kind) for _ in values]

    async with Stage(agent, {}).open() as it:
        for name in ("returns", "emits", "in_thread", "in_batch"):
            it.give(name, 1)
        reports = await it.reported(4)
    assert {each.outcome for each in reports} <= {"failed", "dead"}
    assert all(kind.__name__ in (each.error or "") for each in reports), reports


async def test_h7_one_result_of_a_batch_takes_no_neighbour_with_it() -> None:
    agent = Agent("a")

    @agent.on("a.b", batch=3, within=5.0, emits="a.c")
    async def work(values: list[int]) -> list[Any]:
        return [1, Thing(), answer()]

    async with Stage(agent, {}).open() as it:
        it.give("work", 1, 2, 3)
        reports = {each.delivery.message.value: each.outcome for each in await it.reported(3)}
    assert reports == {1: None, 2: "dead", 3: "dead"}


@pytest.mark.parametrize("name", ["emit", "broadcast"])
async def test_h7_an_emit_that_is_awaited_is_told_in_plain_words(name: str) -> None:
    async def emit(value: int, context: Context) -> None:
        await context.emit("a.c", value)  # type: ignore[func-returns-value]

    async def broadcast(value: int, it: Context) -> None:
        await it.broadcast("a.c", value)  # type: ignore[func-returns-value]

    async with stage(emit, broadcast).open() as it:
        it.give(name, 1)
        [report] = await it.reported()
    assert report.outcome == "dead"
    assert report.error is not None
    assert f"{name} is not awaited" in report.error
    assert f"{__file__}:" in report.error


async def test_h8_a_failure_names_the_files_and_lines_of_the_user(caplog: pytest.LogCaptureFixture) -> None:
    def deeper() -> None:
        json.loads("{")

    async def work(value: int) -> None:
        deeper()

    def plain(value: int) -> None:
        deeper()

    async def group(value: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, value)

    for name in ("work", "plain", "group"):
        caplog.clear()
        async with stage(work, plain, group).open() as it:
            it.give(name, 1)
            await it.reported()
        [line] = [each.getMessage() for each in caplog.records if "failed on" in each.getMessage()]
        assert f"{__file__}:{deeper.__code__.co_firstlineno + 1} in deeper" in line
        assert "runtime/worker/execution/attempt.py" not in line
        assert "json/decoder.py:" in line


async def test_h8_agents_that_are_installed_are_the_user_s_own(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"{Path(__file__).parents[3]}{os.sep}"
    monkeypatch.setattr(tracebacks, "_LIBRARIES", (*tracebacks._LIBRARIES, folder))
    monkeypatch.setattr(tracebacks, "_own", set())

    async def work(context: Context) -> None:
        await context.emit("a.b", 1)  # type: ignore[func-returns-value]

    async with stage(work).open() as it:
        it.give("work", 1)
        await it.reported()
    [line] = [each.getMessage() for each in caplog.records if "failed on" in each.getMessage()]
    assert f"({__file__}:{work.__code__.co_firstlineno + 1} in work)" in line


async def test_h8_a_configuration_of_the_log_does_not_silence_failures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def work(value: int) -> None:
        raise ValueError("to be seen")

    steady()
    root = logging.getLogger()
    handlers = root.handlers[:]
    loggers = [
        each for each in logging.Logger.manager.loggerDict.values() if isinstance(each, logging.Logger)
    ]
    enabled = [each for each in loggers if not each.disabled]
    seen: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    root.handlers = [Keeping()]
    try:
        logging.config.dictConfig({"version": 1})
        logging.disable(logging.CRITICAL)
        async with stage(work).open() as it:
            it.give("work", 1)
            await it.reported()
    finally:
        logging.disable(logging.NOTSET)
        root.handlers = handlers
        for each in enabled:
            each.disabled = False
    assert any("to be seen" in line for line in seen)
    assert isinstance(logging.getLogger("runtime.handlers"), SteadyLogger)
