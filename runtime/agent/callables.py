"""Functions as they stand in a file, behind the decorators, partials and objects around them."""

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import Context, copy_context
from inspect import getattr_static
from types import FunctionType
from typing import Any

import anyio

from runtime.errors import DeclarationError

_LONGEST_CHAIN = 100


def chain(function: object) -> Iterator[object]:
    """Yield a callable and what stands within it, the outermost first."""
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
    """Return the function with code of its own that a callable leads to in the end; None for one written in C."""
    *_, last = chain(function)
    return last if isinstance(last, FunctionType) else None


def place_of(function: object) -> str:
    """Where a function stands, so that an editor finds it."""
    code = getattr(innermost(function), "__code__", None) or getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}, {name_of(function)}" if code else name_of(function)


def name_of(function: object) -> str:
    """What a callable is called."""
    return getattr(function, "__name__", None) or repr(function)


def declared_at() -> str:
    """Where a declaration stands that is being made: the innermost frame outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "runtime":
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def refuse_methods(function: Callable[..., object], what: str) -> None:
    """Refuse a method: nobody has an object to call it on.

    Raises:
        DeclarationError: the function stands in the body of a class and its first parameter is the object's.
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
    """The names that the annotations of a function may mean."""
    found: Mapping[str, Any] = getattr(innermost(function), "__globals__", {})
    return found


def is_async(function: object) -> bool:
    """Whether a callable is an async function, or stands around one."""
    return any(inspect.iscoroutinefunction(each) for each in chain(function))


def async_form(function: Callable[..., object]) -> Callable[..., object]:
    """Return a handler's function as one whose calls are awaited: itself, where it is async itself."""
    return function if inspect.iscoroutinefunction(function) else _PlainAroundAsync(function)


class _PlainAroundAsync:
    """A plain function around an async one: most pass its coroutine on, but some run it to its end themselves.

    The first call is made in a thread, where neither kind can block the loop. What that call returns tells which kind
    it is: a function that passed a coroutine on is called on the loop from then on.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._passes_on = False

    async def __call__(self, **arguments: Any) -> object:
        """Call the function, and await what it passes on."""
        call = functools.partial(self._function, **arguments)
        result = await self._first_call(call) if not self._passes_on else call()
        return await result if isinstance(result, Awaitable) else result

    async def _first_call(self, call: Callable[[], object]) -> object:
        context = copy_context()
        try:
            result = await anyio.to_thread.run_sync(context.run, call, abandon_on_cancel=True)
        except RuntimeError as error:
            if str(error) != "no running event loop":
                raise
            # It makes a task, or asks for the loop, before it returns: that needs the loop's own thread.
            result = call()
        if isinstance(result, Awaitable):
            self._passes_on = True
            _take_over(context)
        return result


def _take_over(context: Context) -> None:
    """Set what was set in a copy of this context; an attempt has a context of its own."""
    for variable, value in context.items():
        if variable.get(None) is not value:
            variable.set(value)
