"""What goes around an attempt: in which order, seeing what, and what it can change. On a runner without a store."""

import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from runtime import Agent, Context, Reject, RetryLater
from runtime.errors import DeclarationError, InvalidPayload
from tests.worker.execution.test_executor import Stage

pytestmark = pytest.mark.anyio

CallNext = Callable[[], Awaitable[Any]]


def emitted(report: Any) -> list[str]:
    return [emit.split('"')[3] for emit in report.emits]


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_the_first_declared_is_outermost_and_sees_what_the_handler_returns(kind: str) -> None:
    agent, order = Agent("a"), []

    if kind == "async":

        @agent.on("a.b", emits="a.c", name="work")
        async def work(value: int) -> int:
            order.append("work")
            return value + 1
    else:

        @agent.on("a.b", emits="a.c", name="work")
        def work_in_thread(value: int) -> int:
            assert threading.current_thread() is not threading.main_thread()
            order.append("work")
            return value + 1

    @agent.middleware
    async def outer(context: Context, call_next: CallNext) -> Any:
        order.append(f"outer before {context.message.value}")
        result = await call_next()
        order.append(f"outer after {result}")
        return result * 10

    @agent.middleware
    async def inner(context: Context, call_next: CallNext) -> None:
        order.append("inner before")
        order.append(f"inner after {await call_next()}")

    async with Stage(agent, {}).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    # The inner one returns nothing, which changes nothing.
    assert order == ["outer before 1", "inner before", "work", "inner after 2", "outer after 2"]
    assert report.emits == ('{"key":"a.c","agent":"a","correlation_id":"1","parent_id":1,"value":20}',)


@pytest.mark.parametrize(
    ("raised", "outcome"), [(Reject("no"), "dead"), (RetryLater(7), "later"), (ValueError("no"), "failed")]
)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_a_middleware_raises_ends_the_attempt_as_if_the_handler_had(
    raised: Exception, outcome: str, when: str
) -> None:
    agent, ran = Agent("a"), []

    @agent.middleware
    async def strict(context: Context, call_next: CallNext) -> None:
        if when == "after":
            await call_next()
        raise raised

    @agent.on("a.b", emits="a.c")
    async def work(value: int) -> int:
        ran.append(value)
        return value

    async with Stage(agent, {}).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert (report.outcome, report.emits) == (outcome, ())
    assert len(ran) == (when == "after")


async def test_an_error_is_seen_and_may_be_made_up_for_but_what_the_failed_call_emitted_is_not_written() -> (
    None
):
    agent, seen = Agent("a"), []

    @agent.middleware
    async def make_up(context: Context, call_next: CallNext) -> Any:
        try:
            return await call_next()
        except Exception as error:  # noqa: BLE001 - any of them is made up for
            seen.append(type(error))
            context.emit("a.failed", str(error))
            return "instead"

    @agent.on("a.b", emits="a.c")
    async def work(value: int, context: Context) -> None:
        context.emit("a.half", value)
        raise ValueError("no")

    async with Stage(agent, {}).open() as it:
        it.give("work", 1, "one")
        failed, invalid = await it.reported(2)
    assert seen == [ValueError, InvalidPayload]
    assert emitted(failed) == emitted(invalid) == ["a.failed", "a.c"]
    assert (failed.outcome, invalid.outcome) == (None, None)


async def test_the_timeout_covers_it_and_the_next_attempt_sees_nothing_it_set() -> None:
    agent, cleaned = Agent("a"), []
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")

    @agent.middleware
    async def slow(context: Context, call_next: CallNext) -> Any:
        assert variable.get() == "clean"
        variable.set("seen by the handler")
        try:
            if context.message.value == "slow":
                await anyio.sleep_forever()
            return await call_next()
        finally:
            cleaned.append(context.message.value)

    @agent.on("a.b", timeout=0.05)
    async def work(value: str) -> None:
        assert variable.get() == "seen by the handler"

    @agent.on("a.b")
    def plain(value: str) -> None:
        assert variable.get() == "seen by the handler"

    async with Stage(agent, {"a.work": 1}).open() as it:
        it.give("work", "slow")
        it.give("work", "quick")
        it.give("plain", "quick")
        reports = await it.reported(3)
    by_value = {(each.delivery.subscription, each.delivery.message.value): each for each in reports}
    assert by_value.pop((1, "slow")).error == "TimeoutError"
    assert [each.error for each in by_value.values()] == [None, None]
    assert sorted(cleaned) == ["quick", "quick", "slow"]


async def test_a_call_that_is_not_awaited_is_said_to_be() -> None:
    agent = Agent("a")

    @agent.middleware
    async def forgetful(context: Context, call_next: CallNext) -> Any:
        return call_next()

    @agent.on("a.b")
    async def work(value: int) -> None: ...

    async with Stage(agent, {}).open() as it:
        it.give("work", 1)
        [report] = await it.reported()
    assert "write `return await call_next()`" in str(report.error)


def plain(context: Context, call_next: CallNext) -> None: ...
async def without_next(context: Context) -> None: ...
async def with_more(context: Context, call_next: CallNext, more: int) -> None: ...


@pytest.mark.parametrize("function", [plain, without_next, with_more, 7])
def test_what_cannot_be_called_so_is_refused_with_the_cure(function: Any) -> None:
    with pytest.raises(DeclarationError, match=r"Write `async def timing\(context, call_next\)"):
        Agent("a").middleware(function)
