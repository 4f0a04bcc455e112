"""Options that do not exist: refused with the nearest one that does, and with the line of the call."""

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any, TypeVar, get_args

from runtime.agent.callables import declared_at, declaring_frame
from runtime.errors import DeclarationError, WrongCall, did_you_mean

Called = TypeVar("Called", bound=Callable[..., Any])


def refuse_unknown(
    called: str,
    options: Mapping[str, Any],
    known: Collection[str],
    *,
    hint: str = "",
    error: type[DeclarationError] = DeclarationError,
) -> None:
    """Refuse options that a declaration or a call does not take.

    Args:
        called: what was called, as the user writes it: `@agent.on(…)`.
        options: those that were given.
        known: the names of those it takes.
        hint: a further sentence.
        error: the type of what is raised.

    Raises:
        DeclarationError: there are some; the message names the nearest of those it takes.
    """
    if unknown := sorted(options.keys() - set(known)):
        meant = did_you_mean(unknown[0], known) or "."
        # Of a coroutine that runs as a task of its own, nobody knows any more who called it.
        is_task = declaring_frame().f_globals.get("__name__", "").partition(".")[0] == "asyncio"
        where = "" if is_task else f"{declared_at()}: "
        raise error(
            f"{where}{called} takes no {unknown[0]}=…{meant} It takes {', '.join(sorted(known))}.{hint}"
        )


def takes_known_options(called: Called) -> Called:
    """Have a class or a function refuse options that it does not take as `refuse_unknown` does.

    Python's own TypeError names neither the nearest option nor, where it is only logged, the line.
    """
    inner: Callable[..., Any] = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]
    shown = f"{called.__qualname__}(…)"
    known = tuple(_option_names(inner))
    is_declaration = called.__module__.startswith("runtime.agent.")
    error = DeclarationError if is_declaration else WrongCall

    def check(options: Mapping[str, Any]) -> None:
        if options:
            refuse_unknown(shown, options, known, error=error)

    call = _like(inner, check)
    if isinstance(called, type):
        called.__init__ = call  # type: ignore[misc]
        return called
    return call  # type: ignore[return-value]


def _like(inner: Callable[..., Any], check: Callable[[Mapping[str, Any]], None]) -> Callable[..., Any]:
    """Return a function that checks the options first, and is async where the other is: decorators look at that.

    A generator's options are checked by the call, not only when its first item is asked for.
    """
    if inspect.iscoroutinefunction(inner):

        @wraps(inner)
        async def call_async(*arguments: Any, **options: Any) -> Any:
            check(options)
            return await inner(*arguments, **options)

        return call_async

    @wraps(inner)
    def call(*arguments: Any, **options: Any) -> Any:
        check(options)
        return inner(*arguments, **options)

    return call


def _option_names(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's arguments, those of `**options: Unpack[SomeTypedDict]` included."""
    names: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            names += [name for each in get_args(parameter.annotation) for name in each.__annotations__]
        elif parameter.kind is not parameter.VAR_POSITIONAL and parameter.name != "self":
            names.append(parameter.name)
    return names
