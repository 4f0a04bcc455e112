"""Functions behind the decorators, partials and callable objects that wrap them."""

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import copy_context
from inspect import getattr_static
from types import FrameType, FunctionType, SimpleNamespace, UnionType
from typing import Any, Never, NoReturn, Union, get_args, get_origin, get_type_hints

import anyio

from runtime.errors import DeclarationError

_LONGEST_CHAIN = 100


def chain(function: object) -> Iterator[object]:
    """Yield a callable and the callables it wraps, the outermost first."""
    for _ in range(_LONGEST_CHAIN):
        yield function
        if (inner := getattr(function, "__wrapped__", None)) is not None:
            function = inner
        elif isinstance(function, FunctionType):
            return
        elif isinstance(function, functools.partial):
            function = function.func
        elif (inner := getattr(function, "__func__", None)) is not None:
            function = inner
        elif isinstance(call := getattr_static(type(function), "__call__", None), FunctionType):
            function = call
        else:
            return


def innermost(function: object) -> FunctionType | None:
    """Return the Python function that a callable wraps in the end; None for a function written in C."""
    *_, last = chain(function)
    return last if isinstance(last, FunctionType) else None


def place_of(function: object) -> str:
    """Return the file, line and name of a function, so that an editor finds it."""
    code = getattr(innermost(function), "__code__", None) or getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}, {name_of(function)}" if code else name_of(function)


def name_of(function: object) -> str:
    """Return the name of a callable, or its repr."""
    return getattr(function, "__name__", None) or repr(function)


def declared_at() -> str:
    """Return the file and line of the declaration being made: the innermost frame outside this package."""
    frame = declaring_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def declaring_frame() -> FrameType:
    """Return the innermost frame outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "runtime":
        frame = frame.f_back
    return frame


def refuse_methods(function: Callable[..., object], what: str) -> None:
    """Refuse a function in the body of a class whose first parameter is the object: there is no object.

    Raises:
        DeclarationError: the function is such a method.
    """
    outer = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not outer or outer.endswith("<locals>"):
        return
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is not None and (first.name in ("self", "cls") or first.annotation is first.empty):
        raise DeclarationError(
            f"{place_of(function)}: {what} goes above a function, not above a method: there is no object to give "
            f"it as {first.name!r}. Declare a function beside the class that calls the method."
        )


def globals_of(function: object) -> Mapping[str, Any]:
    """Return the global names that the annotations of a function can use."""
    found: Mapping[str, Any] = getattr(innermost(function), "__globals__", {})
    return found


def promises_value(function: object) -> bool:
    """Whether the return annotation of a function is a type that None does not belong to."""
    inner = innermost(function)
    written = None if inner is None else inner.__annotations__.get("return")
    if inner is None or written is None:
        return False
    try:
        # The return annotation alone: the others may name what only type checkers import.
        promised = get_type_hints(SimpleNamespace(__annotations__={"return": written}), inner.__globals__)[
            "return"
        ]
    except (NameError, AttributeError, SyntaxError, TypeError):
        return False
    members = get_args(promised) if get_origin(promised) in (Union, UnionType) else (promised,)
    return not {Any, object, NoReturn, Never, type(None)}.intersection(members)


def is_async(function: object) -> bool:
    """Whether a callable is an async function, or wraps one."""
    return any(inspect.iscoroutinefunction(each) for each in chain(function))


def async_form(function: Callable[..., object]) -> Callable[..., object]:
    """Return a handler's function as one whose calls are awaited: itself, if it is async itself."""
    return function if inspect.iscoroutinefunction(function) else _SyncWrapper(function)


class _SyncWrapper:
    """A plain function around an async one: most return its coroutine, but some run it to its end themselves.

    The first call is made in a thread, where neither kind can block the loop. Its result tells the kind: a function
    that returned a coroutine is called on the loop from then on.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._returns_awaitable = False

    async def __call__(self, **arguments: Any) -> object:
        """Call the function, and await the coroutine it may return."""
        call = functools.partial(self._function, **arguments)
        result = call() if self._returns_awaitable else await self._first_call(call)
        return await result if isinstance(result, Awaitable) else result

    async def _first_call(self, call: Callable[[], object]) -> object:
        context = copy_context()
        try:
            result = await anyio.to_thread.run_sync(context.run, call, abandon_on_cancel=True)
        except RuntimeError as error:
            if str(error) != "no running event loop":
                raise
            # The wrapper makes a task, or asks for the loop, before it returns: that needs the loop's own thread.
            result = call()
        if isinstance(result, Awaitable):
            self._returns_awaitable = True
            # What the wrapper set in its copy counts here too: the attempt has a context of its own.
            for variable, value in context.items():
                if variable.get(None) is not value:
                    variable.set(value)
        return result
