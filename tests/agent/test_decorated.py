"""Handlers behind decorators, partials and objects: called as what they are, or refused with their place."""

import asyncio
import contextvars
import functools
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import BaseModel, validate_call

from runtime import Agent, Context
from runtime.errors import DeclarationError
from tests.worker.execution.test_executor import Stage

pytestmark = pytest.mark.anyio
_log = logging.getLogger(__name__)
where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


class Article(BaseModel):
    title: str


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator everybody writes."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _log.info("called")
        return function(*args, **kwargs)

    return wrapper


def as_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a task, for which it needs the loop at once."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Awaitable[Any]:
        return asyncio.get_running_loop().create_task(function(*args, **kwargs))

    return wrapper


def with_variable(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        where.set("in the wrapper")
        return function(*args, **kwargs)

    return wrapper


@contextmanager
def timed() -> Iterator[None]:
    yield


class Noted:
    """Awaitable, and no coroutine."""

    def __init__(self, coroutine: Any) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Any:
        return self._coroutine.__await__()


def noted(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Noted:
        return Noted(function(*args, **kwargs))

    return wrapper


async def outcomes(agent: Agent, count: int = 3) -> list[Any]:
    """What comes of some deliveries of the agent's only handler, one after another."""
    async with Stage(agent, {}).open() as it:
        for number in range(1, count + 1):
            it.give(agent.handlers[0].name.partition(".")[2], {"title": "t"})
            await it.reported(number)
    return [report.error or list(report.emits) for report in it.reports]


@pytest.mark.parametrize(
    "decorator",
    [
        logged,
        validate_call,
        as_task,
        with_variable,
        timed(),
        noted,
        lambda function: logged(logged(function)),
        lambda function: logged(validate_call(function)),
    ],
    ids=[
        "logged",
        "validate_call",
        "task",
        "variable",
        "context manager",
        "awaitable",
        "two",
        "both",
    ],
)
async def test_v4_a_plain_decorator_around_an_async_handler_has_it_awaited(decorator: Any) -> None:
    agent = Agent("a")
    threads: list[threading.Thread] = []

    async def work(article: Article, context: Context) -> str:
        threads.append(threading.current_thread())
        await asyncio.sleep(0)
        return f"{article.title} {context.message.id}"

    agent.on("a.b", emits="a.c")(decorator(work))
    found = await outcomes(agent)
    assert ['"t 1"' in str(found[0]), '"t 3"' in str(found[2])] == [True, True], found
    assert set(threads) == {threading.main_thread()}


async def test_v4_what_a_decorator_sets_in_a_context_variable_is_seen_by_the_handler() -> None:
    agent = Agent("a")
    seen: list[str] = []

    @agent.on("a.b")
    @with_variable
    async def work(value: Any) -> None:
        seen.append(where.get())

    assert await outcomes(agent) == [[], [], []]
    assert seen == ["in the wrapper"] * 3
    assert where.get() == "nowhere"


async def test_v4_a_decorator_that_runs_the_handler_itself_does_so_in_a_thread() -> None:
    agent = Agent("a")
    threads: list[threading.Thread] = []

    def run_to_the_end(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run(function(*args, **kwargs))

        return wrapper

    @agent.on("a.b", emits="a.c")
    @run_to_the_end
    async def work(value: Any) -> str:
        threads.append(threading.current_thread())
        return "done"

    found = await outcomes(agent)
    assert all('"done"' in str(each) for each in found), found
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("is_batch", [False, True])
async def test_v4_a_plain_function_that_only_passes_a_coroutine_on_has_it_awaited(is_batch: bool) -> None:
    agent = Agent("a")

    async def later() -> Any:
        return ["later"] if is_batch else "later"

    def work(value: Any) -> Any:
        return later()

    agent.on("a.b", emits="a.c", batch=1 if is_batch else None)(work)
    found = await outcomes(agent)
    assert all('"later"' in str(each) for each in found), found


async def test_v4_an_error_behind_a_decorator_is_a_failed_attempt_with_its_own_words() -> None:
    agent = Agent("a")

    @agent.on("a.b")
    @logged
    async def work(value: Any) -> None:
        raise RuntimeError("no running event loop in sight")

    found = await outcomes(agent)
    assert found == ["RuntimeError: no running event loop in sight"] * 3


async def test_v4_a_timeout_reaches_what_stands_behind_a_decorator() -> None:
    agent = Agent("a")

    @agent.on("a.b", timeout=0.05)
    @logged
    async def work(value: Any) -> None:
        await asyncio.sleep(3600)

    assert all("TimeoutError" in each for each in await outcomes(agent, 2))


class Connection:
    is_open = False


@pytest.mark.parametrize("is_async", [True, False])
async def test_v4_what_is_provided_is_open_while_a_decorated_handler_is_awaited(is_async: bool) -> None:
    agent = Agent("a")
    seen: list[bool] = []

    def plain() -> Iterator[Connection]:
        connection = Connection()
        connection.is_open = True
        yield connection
        connection.is_open = False

    async def on_loop() -> AsyncIterator[Connection]:
        for each in plain():
            yield each

    agent.provide(on_loop if is_async else plain)

    @agent.on("a.b")
    @logged
    async def work(connection: Connection | None = None) -> None:
        await asyncio.sleep(0)
        assert connection is not None
        seen.append(connection.is_open)

    assert await outcomes(agent) == [[], [], []]
    assert seen == [True, True, True]


async def test_v4_a_coroutine_passed_on_past_the_end_of_what_it_was_given_is_refused_with_the_cure() -> None:
    agent = Agent("a")

    @agent.provide
    def connection() -> Iterator[Connection]:
        yield Connection()

    async def later(connection: Connection) -> None: ...

    @agent.on("a.b")
    def work(connection: Connection) -> Any:
        return later(connection)

    (error,) = await outcomes(agent, 1)
    assert "closed before it is awaited: declare it with `async def`" in error


@pytest.mark.parametrize("stands_around", ["partial", "object", "async object", "method", "builtin"])
async def test_v4_wraps_over_what_is_no_function_works(stands_around: str) -> None:
    class Plain:
        def __call__(self, value: Any, factor: int = 2) -> Any:
            return value

    class Async:
        async def __call__(self, value: Any) -> Any:
            return value

        async def method(self, value: Any) -> Any:
            return value

    inner: Any = {
        "partial": functools.partial(lambda value, factor: value, factor=3),
        "object": Plain(),
        "async object": Async(),
        "method": Async().method,
        "builtin": dict,
    }[stands_around]

    if stands_around == "builtin":
        agent = Agent("a")
        with pytest.raises(DeclarationError, match=r"test_decorated\.py:\d+, .*cannot be (read|filled)"):
            agent.on("a.b", name="work")(logged(inner))
        return
    agent = Agent("a")
    agent.on("a.b", name="work", emits="a.c")(logged(inner))
    found = await outcomes(agent)
    assert all('{"title":"t"}' in str(each) for each in found), found


class Service:
    def __call__(self, value: int) -> None: ...

    def handle(self, value: int) -> None: ...


@pytest.mark.parametrize(
    "thing",
    [
        Service,
        Service(),
        Service().handle,
        print,
        functools.partial(print),
        functools.lru_cache(lambda value: None),
        staticmethod(lambda value: None),
        classmethod(lambda cls, value: None),
        property(lambda self: None),
        7,
        None,
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_v4_what_is_no_function_is_refused_with_the_place_of_its_declaration(thing: Any) -> None:
    with pytest.raises(
        DeclarationError, match=r"test_decorated\.py:\d+: @agent\.on\(…\) goes above a function"
    ):
        Agent("a").on("a.b")(thing)


def yields(value: int) -> Iterator[int]:
    yield value


async def yields_later(value: int) -> AsyncIterator[int]:
    yield value


@pytest.mark.parametrize("function", [yields, yields_later])
def test_v4_a_generator_is_refused_with_its_place(function: Any) -> None:
    with pytest.raises(
        DeclarationError, match=r"test_decorated\.py:\d+, yields.* yields, but a handler returns"
    ):
        Agent("a").on("a.b")(function)


@pytest.mark.parametrize("declare", ["on", "every", "provide"])
def test_v4_a_method_is_refused_with_its_place(declare: str) -> None:
    agent = Agent("a")
    above: Any = {"on": agent.on("a.b"), "every": agent.every("5m"), "provide": agent.provide}[declare]

    def in_a_class(parameters: str) -> None:
        source = f"class Service:\n    @above\n    def handle({parameters}) -> Context: ...\n"
        exec(compile(source, "service.py", "exec"), {"above": above, "Context": Context})

    for parameters in ("self", "self, context: Context", "cls, context: Context", "this"):
        with pytest.raises(DeclarationError, match=r"service\.py:2, handle: .*not above a method"):
            in_a_class(parameters)


async def test_v4_a_function_in_a_class_that_is_no_method_works() -> None:
    agent = Agent("a")

    class Service:
        @staticmethod
        @agent.on("a.b", emits="a.c")
        def work(value: dict[str, str]) -> Any:
            return value

    assert all('{"title":"t"}' in str(each) for each in await outcomes(agent))
    assert Service.work({}) == {}


async def test_v4_a_lambda_with_a_name_works() -> None:
    agent = Agent("a")
    agent.on("a.b", name="work", emits="a.c")(lambda value: value)
    assert all('{"title":"t"}' in str(each) for each in await outcomes(agent))


async def test_v4_a_decorated_middleware_is_one() -> None:
    agent = Agent("a")
    seen: list[str] = []

    @agent.middleware
    @logged
    async def around(context: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
        seen.append("around")
        return await call_next()

    @agent.on("a.b")
    async def work(value: Any) -> None: ...

    assert await outcomes(agent) == [[], [], []]
    assert seen == ["around"] * 3
