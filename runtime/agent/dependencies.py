"""Dependencies of handlers: arguments that providers give, by the type of their annotation.

They are resolved when the handler is declared. A provider is declared above the functions that need it, so there are no
cycles; each one is opened once per attempt, after its own dependencies.
"""

import inspect
import types
from collections import abc
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from runtime.agent.callables import declared_at, innermost, place_of, refuse_methods
from runtime.agent.context import Context
from runtime.agent.signature import Provider, Signature, read_signature, resolve
from runtime.encoding.annotations import without_alias
from runtime.errors import DeclarationError
from runtime.message import Message

_ITERATORS = (abc.Iterator, abc.Generator, abc.AsyncIterator, abc.AsyncGenerator, AbstractAsyncContextManager)
_NOT_A_TYPE_OF_ITS_OWN = (
    "a message's value may be of that type. Give it one of its own: a class, a NewType, or "
    'Annotated[str, "the shop’s address"] under a name.'
)


def read_provider(function: object, *, names: Mapping[str, Any], known: Mapping[Any, Provider]) -> Provider:
    """Return the provider that a function is.

    Args:
        function: plain or async; if it yields once, the rest of it runs after the attempt.
        names: local names that annotations written as text can use.
        known: the providers declared above it.

    Raises:
        DeclarationError: the return type is missing or taken, or a parameter cannot be filled.
    """
    if not inspect.isfunction(function) or inspect.unwrap(function) is not function:
        raise DeclarationError(
            f"{declared_at()}: @agent.provide goes above a bare function, not above {function!r}. One that yields "
            "once needs no @contextmanager."
        )
    refuse_methods(function, "@agent.provide")
    place = place_of(function)
    has_end = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    provided = _provided(function, names)
    if provided is None or (has_end and provided is Any):
        example = "AsyncIterator[Connection]" if has_end else "Connection"
        raise DeclarationError(f"{place}: say what it provides, as `-> {example}`.")
    if not _is_own_type(provided):
        raise DeclarationError(f"{place}: {provided!r} cannot be provided, since {_NOT_A_TYPE_OF_ITS_OWN}")
    if provided in known:
        raise DeclarationError(
            f"{place}: {_name(provided)} is provided already. Leave one of them out, or give one another type: "
            f'Annotated[{_name(provided)}, "the other one"].'
        )
    signature = read_signature(function, names=names, provided=known, takes_value=False)
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    call: Callable[..., Any] = function
    if has_end:
        call = asynccontextmanager(function) if is_async else contextmanager(function)
    return Provider(provided, call, is_async=is_async, has_end=has_end, signature=signature)


def state_provider(lifespan: Callable[..., object], *, names: Mapping[str, Any]) -> Provider | None:
    """Return the provider of the agent's state, if the lifespan's annotation names a type that is its own."""
    try:
        provided = _provided(lifespan, names)
    except DeclarationError:
        # The annotation may be for type checkers alone.
        return None
    if provided is None or not _is_own_type(provided):
        return None
    signature = Signature(value=None, messages=(), contexts=("context",))
    return Provider(
        provided, lambda context: context.state, is_async=False, has_end=False, signature=signature
    )


class Dependencies:
    """The parameters of one handler that providers fill.

    Args:
        parameters: each with its provider.
        is_async: whether the handler runs on the loop; a plain handler runs in a thread, and so do plain providers,
            except those that an async provider needs.
    """

    def __init__(self, parameters: Iterable[tuple[str, Provider]], *, is_async: bool) -> None:
        self._parameters = tuple(parameters)
        order = _in_order(provider for _, provider in self._parameters)
        on_loop = order if is_async else _in_order(each for each in order if each.is_async)
        self._on_loop = on_loop
        self._in_thread = [each for each in order if each not in on_loop]
        self._closes = any(each.has_end for each in self._in_thread)

    async def call(
        self,
        call: Callable[[Callable[[], object]], Awaitable[object]],
        function: Callable[..., object],
        arguments: Mapping[str, Any],
        context: Context,
    ) -> object:
        """Return what the function returns; by then its providers are closed, and were told of its error.

        Args:
            call: runs a function where the handler runs.
            function: the handler's.
            arguments: those that no provider gives.
            context: of the attempt.

        Raises:
            BaseException: of the function, or of a provider before or after it.
        """
        found: dict[Provider, Any] = {}
        return await _within(
            iter(self._on_loop),
            found,
            context,
            lambda: call(lambda: self._call(function, arguments, context, found)),
        )

    def _call(
        self,
        function: Callable[..., object],
        arguments: Mapping[str, Any],
        context: Context,
        found: dict[Provider, Any],
    ) -> object:
        """Open the plain providers and call the function."""

        def finish() -> object:
            result = function(**arguments, **{name: found[each] for name, each in self._parameters})
            if self._closes and inspect.isawaitable(result):
                _refuse_late(result, context)
            return result

        return _within_plain(iter(self._in_thread), found, context, finish)


def _refuse_late(result: Awaitable[object], context: Context) -> None:
    """Refuse an awaitable result: it would be awaited only after the plain providers are closed."""
    if inspect.iscoroutine(result):
        result.close()
    raise DeclarationError(
        f"{context.handler} returned an awaitable, but what plain providers opened for it is closed before it is "
        "awaited: declare it with `async def`."
    )


class _Unsuppressed:
    """A provider's context manager that cannot suppress the attempt's error: the other providers see it too."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __enter__(self) -> Any:
        return self._manager.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._manager.__exit__(*error)

    async def __aenter__(self) -> Any:
        return await self._manager.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._manager.__aexit__(*error)


# Nested `with` statements: an ExitStack follows the chain of an exception's contexts to its end, and a chain that goes
# round in a circle would block the loop for ever.


async def _within(
    providers: Iterator[Provider],
    found: dict[Provider, Any],
    context: Context,
    then: Callable[[], Awaitable[object]],
) -> object:
    """Open these providers, one within the other, and call `then` in the innermost."""
    if (provider := next(providers, None)) is None:
        return await then()
    made = provider.call(**_arguments(provider, context, found))
    if provider.has_end and provider.is_async:
        async with _Unsuppressed(made) as found[provider]:
            return await _within(providers, found, context, then)
    if provider.has_end:
        with _Unsuppressed(made) as found[provider]:
            return await _within(providers, found, context, then)
    found[provider] = await made if provider.is_async else made
    return await _within(providers, found, context, then)


def _within_plain(
    providers: Iterator[Provider],
    found: dict[Provider, Any],
    context: Context,
    then: Callable[[], object],
) -> object:
    """Do the same with plain providers, in a thread."""
    if (provider := next(providers, None)) is None:
        return then()
    made = provider.call(**_arguments(provider, context, found))
    if provider.has_end:
        with _Unsuppressed(made) as found[provider]:
            return _within_plain(providers, found, context, then)
    found[provider] = made
    return _within_plain(providers, found, context, then)


def _arguments(provider: Provider, context: Context, found: Mapping[Provider, Any]) -> dict[str, Any]:
    signature = provider.signature
    arguments = signature.bind(context.handler, context.message, context)
    for name, need in signature.needs:
        arguments[name] = found[need]
    return arguments


def _in_order(providers: Iterable[Provider]) -> list[Provider]:
    """Return these providers and their dependencies, each once and after its own dependencies."""
    order: list[Provider] = []
    for provider in providers:
        needed = _in_order(need for _, need in provider.signature.needs)
        order += [each for each in (*needed, provider) if each not in order]
    return order


def _provided(function: Callable[..., Any], names: Mapping[str, Any]) -> Any:
    """Return the type that a function returns or yields by its annotation; None if it has none."""
    bare = innermost(function)
    written = None if bare is None else bare.__annotations__.get("return")
    if bare is None or written is None:
        return None
    annotation = without_alias(resolve(bare, {"return": written}, names)["return"])
    if get_origin(annotation) in _ITERATORS or annotation in _ITERATORS:
        return without_alias(next(iter(get_args(annotation)), Any))
    return Any if inspect.isgeneratorfunction(bare) or inspect.isasyncgenfunction(bare) else annotation


def _is_own_type(annotation: Any) -> bool:
    """Whether an annotation means this dependency and cannot be the type of a message's value."""
    if get_origin(annotation) is Annotated:
        try:
            hash(annotation)
        except TypeError:
            return False
        return True
    kind = get_origin(annotation) or annotation
    unclear = (Any, Union, types.UnionType, types.NoneType, Context, Message)
    return (
        kind not in unclear
        and not isinstance(kind, TypeVar)
        and getattr(kind, "__module__", "") != "builtins"
    )


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
