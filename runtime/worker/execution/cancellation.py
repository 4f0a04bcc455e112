"""Cancellation: whether it comes from outside of a handler, and how to be rid of one that the handler caused."""

import asyncio
import logging
import math
from contextlib import suppress
from typing import Any

import anyio
from anyio._backends import _asyncio

from runtime.agent.handler import Handler
from runtime.worker.event_loop import is_pressed

_log = logging.getLogger("runtime.handlers")
# anyio's own record of the scopes of each task. In a release that keeps it elsewhere, scopes left open stay open.
TASK_STATES: Any = getattr(_asyncio, "_task_states", {})


def comes_from_outside(error: BaseException) -> bool:
    """Whether the attempt is ended from outside, so that the handler has not failed.

    Anything else that a handler raises is its own failure, also a KeyboardInterrupt or a cancellation: it cancelled
    itself, or awaited a task that was cancelled.
    """
    if type(error) is GeneratorExit:
        # A task is closed after its loop has ended; on a loop that runs, the handler itself has raised it.
        return not _loop_runs()
    if issubclass(type(error), asyncio.CancelledError):
        return anyio.current_effective_deadline() == -math.inf
    return type(error) is KeyboardInterrupt and is_pressed(error)


def _loop_runs() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def leave_scopes(handler: Handler, state: Any, scope: anyio.CancelScope) -> None:
    """Leave the scopes that a handler entered in this one and never left: they would cancel the next attempt.

    Args:
        state: the task's entry in `TASK_STATES`.
    """
    _log.warning(
        "%s left a cancel scope or a task group open; enter it by `with` or `async with`", handler.name
    )
    while state.cancel_scope not in (scope, None):
        left = state.cancel_scope
        left.cancel()
        left.__exit__(None, None, None)


async def shake_off_cancellation() -> None:
    """Forget that a handler has cancelled the task it ran in: the next delivery must not suffer for it."""
    if anyio.current_effective_deadline() == -math.inf:
        return
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    while task.cancelling():
        task.uncancel()
