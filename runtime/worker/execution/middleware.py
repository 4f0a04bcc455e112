"""Middlewares: async functions around each attempt of an agent; the one declared first is outermost."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from inspect import isawaitable, iscoroutine

from runtime.agent.callables import name_of
from runtime.agent.context import Context
from runtime.agent.validation import Middleware
from runtime.errors import DeclarationError


async def surrounded(
    middlewares: Sequence[Middleware], context: Context, call: Callable[[], Awaitable[object]]
) -> object:
    """Return the result of a call with all the middlewares around it.

    Args:
        middlewares: the outermost first.
        context: of the attempt.
        call: calls the handler's function.

    Raises:
        BaseException: whatever the function raises, or what a middleware raises instead.
    """
    next_call = partial(_forgetting_on_failure, context, call)
    for middleware in reversed(middlewares):
        next_call = partial(_around, middleware, context, next_call)
    return await next_call()


async def _around(middleware: Middleware, context: Context, call: Callable[[], Awaitable[object]]) -> object:
    """One middleware's turn. What it returns replaces the result; None leaves the result as it is."""
    inner: object = None

    async def call_next() -> object:
        nonlocal inner
        # A second call begins anew.
        inner = None
        inner = await call()
        return inner

    result = await middleware(context, call_next)
    if isawaitable(result):
        if iscoroutine(result):
            result.close()
        raise DeclarationError(
            f"The middleware {name_of(middleware)} returned an awaitable: write `return await call_next()`."
        )
    return inner if result is None else result


async def _forgetting_on_failure(context: Context, call: Callable[[], Awaitable[object]]) -> object:
    """A call that failed emits nothing, also where a middleware makes up for the error or calls again."""
    emitted_before = len(context.emitted)
    try:
        return await call()
    except BaseException:
        del context.emitted[emitted_before:]
        raise
