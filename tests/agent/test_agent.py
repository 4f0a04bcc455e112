"""Declarations: what a handler gets follows from its annotations; a wrong one fails where it is written."""

import logging
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from runtime import Agent, Context, Message, Retry
from runtime.agent.handler import Handler
from runtime.errors import DeclarationError, InvalidPayload, InvalidValue


class Article(BaseModel):
    title: str
    words: int = 0


@dataclass
class Point:
    x: float


class StrictDay(BaseModel):
    model_config = ConfigDict(strict=True)

    day: date


def declared(function: Callable[..., object], **options: Any) -> Handler:
    agent = Agent("writer")
    agent.on("task.input", **options)(function)
    return agent.handlers[0]


def arguments(function: Callable[..., object], value: object) -> dict[str, Any]:
    message = Message(7, "task.input", value)
    return declared(function).bind(message, Context(message, "writer.handle"))


def test_a_declaration_keeps_all_it_was_told_and_the_function_stays_callable() -> None:
    agent = Agent("writer")
    retry = Retry(attempts=2)

    @agent.on(
        "task.input", "task.>", "task.input", retry=retry, concurrency=3, emits="task.output",
        ordered=True, start="earliest", timeout=5,
    )  # fmt: skip
    async def draft(article: Article) -> Article:
        return article

    (handler,) = agent.handlers
    assert (handler.name, handler.agent) == ("writer.draft", "writer")
    assert handler.patterns == ("task.input", "task.>")
    assert (handler.retry, handler.concurrency, handler.emits) == (retry, 3, "task.output")
    assert (handler.ordered, handler.start, handler.timeout) == (True, "earliest", 5)
    assert handler.function is draft
    assert handler.is_async
    assert repr(agent) == "<Agent writer [writer.draft]>"


def test_a_declaration_has_plain_defaults() -> None:
    def draft() -> None: ...

    handler = declared(draft)
    assert (handler.retry, handler.concurrency, handler.emits) == (Retry(), None, None)
    assert (handler.ordered, handler.start, handler.timeout) == (False, "latest", None)
    assert not handler.is_async
    assert arguments(draft, {"any": "thing"}) == {}


def test_parameters_are_filled_by_annotation_in_any_order() -> None:
    async def handle(context: Context, article: Article, message: Message[Article]) -> None: ...

    filled = arguments(handle, {"title": "Hello", "words": "3"})
    assert filled["article"] == Article(title="Hello", words=3)
    assert filled["message"].value == filled["article"]
    assert filled["message"].id == 7
    assert filled["context"].message.value == {"title": "Hello", "words": "3"}


def test_annotations_given_as_text_are_resolved() -> None:
    class Local(BaseModel):
        n: int

    agent = Agent("writer")

    @agent.on("task.input")
    def handle(local: "Local", message: "Message[Local]", context: "Context") -> None: ...

    stored = Message(7, "task.input", {"n": 1})
    filled = agent.handlers[0].bind(stored, Context(stored, "writer.handle"))
    assert filled["local"] == filled["message"].value == Local(n=1)
    assert isinstance(filled["context"], Context)


def test_a_module_with_postponed_annotations_works() -> None:
    source = """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from pydantic import BaseModel
        from runtime import Agent, Context, Message
        if TYPE_CHECKING:
            from nowhere import Published
        agent = Agent("writer")
        class Article(BaseModel):
            title: str
        @agent.on("task.input")
        async def handle(article: Article, message: Message[Article], context: Context) -> Published: ...
    """
    module: dict[str, Any] = {"__name__": "postponed"}
    exec(compile(textwrap.dedent(source), "postponed.py", "exec"), module)
    message = Message(1, "task.input", {"title": "Hello"})
    filled = module["agent"].handlers[0].bind(message, Context(message, "writer.handle"))
    assert filled["article"] == module["Article"](title="Hello")


def plain(value): ...  # type: ignore[no-untyped-def]
def anything(value: Any) -> None: ...
def plain_message(message: Message) -> None: ...  # type: ignore[type-arg]
def keyword(*, article: Article) -> None: ...
def with_default(article: Article, limit: int = 10) -> None: ...
def only_default(article: Article | None = None) -> None: ...
def optional(article: Article | None) -> None: ...
def a_point(point: Point) -> None: ...
def a_list(numbers: list[int]) -> None: ...
def bounded(n: Annotated[int, Field(gt=0)]) -> None: ...
def strict(day: StrictDay) -> None: ...


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (plain, {"a": 2**70}, {"value": {"a": 2**70}}),
        (anything, None, {"value": None}),
        (keyword, {"title": "t"}, {"article": Article(title="t")}),
        (with_default, {"title": "t"}, {"article": Article(title="t")}),
        (only_default, {"title": "t"}, {"article": Article(title="t")}),
        (optional, None, {"article": None}),
        (a_point, {"x": 1}, {"point": Point(1.0)}),
        (a_list, ["1", 2], {"numbers": [1, 2]}),
        (bounded, 5, {"n": 5}),
        (strict, {"day": "2024-05-01"}, {"day": StrictDay(day=date(2024, 5, 1))}),
    ],
)
def test_the_value_is_what_the_annotation_says(
    function: Callable[..., object], value: object, expected: object
) -> None:
    assert arguments(function, value) == expected


def test_a_bare_message_keeps_the_plain_value() -> None:
    assert arguments(plain_message, [1])["message"].value == [1]


@pytest.mark.parametrize(
    ("function", "value", "words"),
    [
        (with_default, {"words": "secret"}, "title: Field required; words: Input should be a valid integer"),
        (a_list, [1, "secret"], "1: Input should be a valid integer"),
        (a_list, "secret", "value: Input should be a valid list"),
        (bounded, -5, "value: Input should be greater than 0"),
        (strict, {"day": 12}, "day: Input should be a valid date"),
        (a_list, ["secret"] * 5000, "; and 4990 more"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_pydantics_words_without_the_value(
    function: Callable[..., object], value: object, words: str
) -> None:
    with pytest.raises(InvalidPayload) as caught:
        arguments(function, value)
    assert str(caught.value).startswith(f"writer.{function.__name__} cannot take message 7: ")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def two_values(a: Article, b: Article) -> None: ...
def two_unannotated(a, b): ...  # type: ignore[no-untyped-def]
def two_defaults(a: int = 1, b: int = 2) -> None: ...
def any_number(*articles: Article) -> None: ...
def any_names(**fields: Article) -> None: ...
def positional(article: Article, /) -> None: ...
def two_keywords(article: Article, *, limit: int) -> None: ...
def unknown(article: "Artcle") -> None: ...  # type: ignore[name-defined] # noqa: F821
def no_schema(lock: Coroutine[Any, Any, Any] | Agent) -> None: ...
def hidden_context(context: list[Context]) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (two_values, "'a' and 'b' would all get the value"),
        (two_unannotated, "'a' and 'b' would all get the value"),
        (two_defaults, "'a' and 'b' would all get the value"),
        (two_keywords, "'article' and 'limit' would all get the value"),
        (any_number, r"\*articles cannot be filled"),
        (any_names, r"\*\*fields cannot be filled"),
        (positional, "'article' is positional-only"),
        (unknown, "cannot be resolved .*'Artcle'"),
        (no_schema, "pydantic cannot validate a value to the annotation of 'lock'"),
        (hidden_context, "'context' cannot be filled: its annotation"),
    ],
)
def test_a_signature_that_cannot_be_filled_is_refused_with_its_place(
    function: Callable[..., object], words: str
) -> None:
    with pytest.raises(DeclarationError, match=rf"test_agent\.py:\d+, {function.__name__}: .*{words}"):
        declared(function)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"emits": "task.*"}, "is not a key"),
        ({"emits": ""}, "is not a key"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"start": "first"}, '"latest" or "earliest"'),
        ({"retry": 3}, "must be a Retry"),
        ({"name": "a.b"}, "A handler's name"),
        ({"name": "drei ß"}, "A handler's name"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        declared(plain, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"deliver": "all"}, 'must be "once" or "each"'),
        ({"deliver": "each", "retry": Retry(attempts=3)}, "takes no retry=.*tried again"),
        ({"deliver": "each", "batch": 10}, "takes no batch=.*leave deliver out"),
        ({"deliver": "each", "ordered": True}, "takes no ordered=.*concurrency=1"),
        ({"deliver": "each", "version": "1", "pin": True}, "takes no pin=.*leave pin out"),
        ({"deliver": "each", "start": "earliest"}, r"takes no start=.*stream\.listen"),
    ],
)
def test_deliver_each_takes_no_option_that_needs_a_record(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        Agent("ear").on("news.a", **options)


def test_deliver_each_is_kept_with_what_goes_with_it() -> None:
    ear = Agent("ear")
    ear.on("news.>", deliver="each", concurrency=1, timeout=2, emits="heard")(plain)
    (handler,) = ear.handlers
    assert (handler.deliver, handler.concurrency, handler.timeout) == ("each", 1, 2)


def test_patterns_are_checked() -> None:
    agent = Agent("writer")
    with pytest.raises(DeclarationError, match="is not a pattern"):
        agent.on("task.>.x")
    with pytest.raises(DeclarationError, match="at least one pattern"):
        agent.on()
    with pytest.raises(DeclarationError, match=r"not @agent\.on alone"):
        agent.on(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a.b", "a b", "ä", None])
def test_an_agents_name_is_one_segment(name: str) -> None:
    with pytest.raises(DeclarationError, match="An agent's name"):
        Agent(name)


def test_two_handlers_of_one_name_are_refused_until_one_gets_another() -> None:
    agent = Agent("writer")
    agent.on("a")(plain)
    with pytest.raises(DeclarationError, match=r"writer\.plain is declared twice"):
        agent.on("b")(plain)
    agent.on("b", name="again")(plain)
    assert [handler.name for handler in agent.handlers] == ["writer.plain", "writer.again"]


async def yields() -> AsyncIterator[int]:
    yield 1


class Callback:
    def __call__(self, value: int) -> None: ...


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (yields, "yields"),
        (Callback, "goes above a function"),
        (Callback(), "goes above a function"),
        (lambda value: value, "name="),
    ],
)
def test_what_is_no_handler_is_refused(thing: Callable[..., object], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        declared(thing)


def test_what_is_returned_is_emitted_and_none_is_not() -> None:
    context = Context(Message(7, "task.input", {}), "writer.plain")
    handler = declared(plain, emits="task.output")
    handler.emit_result(Article(title="t"), context)
    handler.emit_result(None, context)
    (draft,) = context.emitted
    assert draft.as_dict()["value"] == {"title": "t", "words": 0}
    assert (draft.key, draft.agent, draft.parent_id) == ("task.output", "writer", 7)
    with pytest.raises(InvalidValue):
        handler.emit_result(float("nan"), context)


def test_a_result_without_a_key_is_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    context = Context(Message(7, "task.input", {}), "writer.plain")
    handler = declared(plain)
    with caplog.at_level(logging.WARNING):
        for result in ("secret", None, "secret"):
            handler.emit_result(result, context)
    assert context.emitted == []
    (record,) = caplog.records
    assert "writer.plain returned a value, but it declares no key" in record.getMessage()
    assert "secret" not in record.getMessage()


def test_a_plain_function_that_returns_a_coroutine_is_told_to_be_async() -> None:
    async def later() -> int:
        return 1

    with pytest.raises(DeclarationError, match="declare the handler with `async def`"):
        declared(plain).emit_result(later(), Context(Message(7, "task.input", {}), "writer.plain"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pin": True}, r"pin=True\) needs a version"),
        ({"version": 2}, r"version=…\) is a text of at most 255 bytes, not 2"),
        ({"version": "1", "pin": True, "batch": 2}, "takes no pin=True: a batch has no steps"),
    ],
)
def test_a_version_is_a_text_and_a_pin_needs_one(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        Agent("a").on("a.b", **options)
