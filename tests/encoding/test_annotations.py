"""Whatever form an annotation has, a parameter is filled by what it means, or its declaration is refused."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NewType, Optional, TypeVar, Union

import pytest
from pydantic import BaseModel
from typing_extensions import TypeAliasType

from runtime import Agent, Context, Message
from runtime.agent.batch import BatchContext
from runtime.agent.handler import Handler
from runtime.agent.schedule import Tick
from runtime.encoding.annotations import mentions
from runtime.errors import DeclarationError


class Article(BaseModel):
    title: str


@dataclass
class Pool:
    name: str = ""


T = TypeVar("T")
C = TypeVar("C", bound=Context)
Maybe = TypeAliasType("Maybe", Context | None)
Given = TypeAliasType("Given", Message[T] | None, type_params=(T,))
Nested = TypeAliasType("Nested", Annotated[Maybe | None, "mine"])
Mine = NewType("Mine", Context)
PoolAlias = TypeAliasType("PoolAlias", Pool)


def declared(function: Callable[..., object], **options: Any) -> Handler:
    agent = Agent("writer")

    @agent.provide
    def pool() -> Pool:
        return Pool("provided")

    agent.on("task.input", **options)(function)
    return agent.handlers[0]


def bound(function: Callable[..., object], value: object) -> dict[str, Any]:
    message = Message(7, "task.input", value)
    return declared(function).bind(message, Context(message, "writer.handle"))


FORMS: list[Any] = [
    Context | None,
    Optional[Context],  # noqa: UP045 - the older way to write it
    Union[None, Context],  # noqa: UP007 - the older way to write it
    Annotated[Context, "mine"],
    Annotated[Context | None, "mine"],
    Annotated[Context, "mine"] | None,
    Maybe,
    Maybe | None,
    Nested,
    Mine,
    Mine | None,
    C,
    "Context | None",
    Optional["Context"],
    "Annotated[Maybe, 'mine']",
]


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_v1_a_context_is_filled_whatever_its_annotation_looks_like(form: Any, default: bool) -> None:
    def handle(article: Article, context: Any = None) -> None: ...
    def needed(article: Article, context: Any) -> None: ...

    function = handle if default else needed
    function.__annotations__["context"] = form
    filled = bound(function, {"title": "t"})
    assert filled["article"] == Article(title="t")
    assert isinstance(filled["context"], Context)


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        Message[Article] | None,
        Optional[Message[Article]],  # noqa: UP045 - the older way to write it
        Annotated[Message[Article], "mine"],
        Given[Article],
        Given[Article] | None,
        NewType("Letter", Message[Article]),
        "Message[Article] | None",
        "Message['Article'] | None",
        Message["Article"] | None,
    ],
    ids=repr,
)
def test_v1_a_message_is_filled_whatever_its_annotation_looks_like(form: Any, default: bool) -> None:
    def handle(message: Any = None) -> None: ...
    def needed(message: Any) -> None: ...

    function = handle if default else needed
    function.__annotations__["message"] = form
    filled = bound(function, {"title": "t"})["message"]
    assert (filled.id, filled.value) == (7, Article(title="t"))


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize(
    "form", [Pool, Pool | None, PoolAlias, PoolAlias | None, "Pool | None", Optional["Pool"]], ids=repr
)
def test_v1_what_is_provided_is_filled_whatever_its_annotation_looks_like(form: Any, default: bool) -> None:
    def handle(article: Article, pool: Any = None) -> None: ...
    def needed(article: Article, pool: Any) -> None: ...

    function = handle if default else needed
    function.__annotations__["pool"] = form
    assert [name for name, _ in declared(function).signature.needs] == ["pool"]


def test_v1_what_an_alias_provides_fills_the_type_it_stands_for() -> None:
    agent = Agent("writer")

    def pool() -> Any: ...

    pool.__annotations__["return"] = PoolAlias
    agent.provide(pool)

    @agent.on("task.input")
    def handle(pool: Pool | None = None) -> None: ...

    assert [name for name, _ in agent.handlers[0].signature.needs] == ["pool"]


def test_v1_a_context_of_a_batch_is_filled_whatever_its_annotation_looks_like() -> None:
    Lists = TypeAliasType("Lists", list[Message[Article]])

    def handle(messages: Lists | None, context: BatchContext | None = None) -> None: ...

    signature = declared(handle, batch=10).signature
    assert (signature.contexts, [name for name, _ in signature.messages]) == (("context",), ["messages"])


def test_v1_a_tick_is_the_value_in_any_form() -> None:
    agent = Agent("writer")

    @agent.every("5m")
    def nightly(context: Context | None = None, tick: Tick | None = None) -> None: ...

    message = Message(1, "timer", {"slot": "2026-01-01T00:00:00Z", "schedule": "writer.nightly"})
    filled = agent.handlers[0].bind(message, Context(message, "writer.nightly"))
    assert isinstance(filled["tick"], Tick)
    assert isinstance(filled["context"], Context)


class OwnContext(Context):
    pass


class Letter(Message[Article]):
    pass


Other = NewType("Other", Pool)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Context | Article, "cannot be filled"),
        (Context | int | None, "cannot be filled"),
        (list[Context], "cannot be filled"),
        (dict[str, Message[Article]], "cannot be filled"),
        (tuple[Context, ...] | None, "cannot be filled"),
        (Callable[[Context], None], "cannot be filled"),
        (Message[Article] | Article, "cannot be filled"),
        (Message[Article] | Message[int], "cannot be filled"),
        (type[Context], "cannot be filled"),
        (OwnContext, "cannot be filled"),
        (OwnContext | None, "cannot be filled"),
        (Letter | None, "cannot be filled"),
        (TypeVar("Either", Context, Message), "cannot be filled"),  # type: ignore[type-arg]
        (BatchContext | None, "declare a batch"),
        (list[Message[Article]] | None, "declare|batch=100"),
        (Annotated[Pool, "the other one"], "but the provider gives"),
        (Other | None, "but the provider gives"),
        (Pool | Article, "one part is provided and another is not"),
        (Pool | Article | None, "one part is provided and another is not"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("default", [False, True])
def test_v1_what_cannot_be_filled_is_refused_and_never_left_at_its_default(
    form: Any, words: str, default: bool
) -> None:
    def handle(article: Article, it: Any = None) -> None: ...
    def needed(article: Article, it: Any) -> None: ...

    function = handle if default else needed
    function.__annotations__["it"] = form
    with pytest.raises(
        DeclarationError, match=rf"test_annotations\.py:\d+, {function.__name__}: .*'it'.*{words}"
    ):
        declared(function)


def test_v1_a_default_that_something_below_would_have_filled_is_refused() -> None:
    agent = Agent("writer")

    @agent.on("task.input")
    def handle(article: Article, pool: Pool | None = None) -> None: ...

    with pytest.raises(
        DeclarationError, match=r"writer\.handle has a parameter of .*Pool.*provider stands below"
    ):

        @agent.provide
        def pool() -> Pool:
            return Pool()


def test_v1_a_default_of_a_provider_that_something_below_would_have_filled_is_refused() -> None:
    class Session:
        pass

    agent = Agent("writer")

    @agent.provide
    def session(pool: Pool | None = None) -> Session:
        return Session()

    with pytest.raises(DeclarationError, match=r"session has a parameter of .*Pool.*provider stands below"):

        @agent.provide
        def pool() -> Pool:
            return Pool()


def test_v1_a_provider_is_given_its_context_in_any_form() -> None:
    class Session:
        pass

    agent = Agent("writer")

    @agent.provide
    def session(context: Context | None = None, message: Message[Any] | None = None) -> Session:
        return Session()

    (provider,) = agent.hooks.providers.values()
    assert provider.signature.contexts == ("context",)
    assert [name for name, _ in provider.signature.messages] == ["message"]


def test_v1_postponed_annotations_in_any_form_are_filled() -> None:
    source = """
        from __future__ import annotations
        from typing import Annotated, Optional
        from pydantic import BaseModel
        from runtime import Agent, Context, Message
        agent = Agent("writer")
        class Article(BaseModel):
            title: str
        @agent.on("task.input")
        async def handle(
            article: Article | None = None,
            message: Optional[Message[Article]] = None,
            context: Annotated[Context | None, "mine"] = None,
        ) -> None: ...
    """
    module: dict[str, Any] = {"__name__": "postponed"}
    exec(compile(textwrap.dedent(source), "postponed.py", "exec"), module)
    message = Message(1, "task.input", {"title": "Hello"})
    filled = module["agent"].handlers[0].bind(message, Context(message, "writer.handle"))
    assert filled["article"] == filled["message"].value == module["Article"](title="Hello")
    assert isinstance(filled["context"], Context)


@pytest.mark.parametrize(
    "function",
    [lambda *context: None, lambda **context: None, lambda context, /: None],
    ids=["*", "**", "/"],
)
def test_v1_parameters_that_have_no_name_to_fill_are_refused_with_their_place(
    function: Callable[..., object],
) -> None:
    with pytest.raises(DeclarationError, match=r"test_annotations\.py:\d+, .*(functools\.wraps|Drop the)"):
        declared(function, name="handle")


def test_v1_a_recursive_alias_is_looked_through_once() -> None:
    Json = TypeAliasType("Json", "list[Json] | dict[str, Json] | int")  # type: ignore[misc]
    assert not mentions(list["Json"], lambda found: found is Context)  # type: ignore[valid-type]
    assert not mentions(Json, lambda found: found is Context)
