"""Plain functions in threads. They cannot be stopped: one that was given up on is known to run until it has ended."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from enum import Enum, auto

import anyio

from runtime.worker.execution import fork


class _ThreadState(Enum):
    NEW = auto()
    RUNNING = auto()
    ENDED = auto()
    SKIPPED = auto()


class ThreadCall:
    """One call of a plain function in a thread.

    Args:
        call: the function.
        ended: told, on the loop that waited, that a call which was given up on has ended after all.
        context: what it is told in; the thread's own is that of the function.
    """

    __slots__ = (
        "_call",
        "_context",
        "_ended",
        "_error",
        "_generation",
        "_lock",
        "_loop",
        "_result",
        "_state",
        "is_left",
    )

    def __init__(self, call: Callable[[], object], ended: Callable[[], None], context: Context) -> None:
        self._call = call
        self._ended = ended
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._generation = fork.Generation.number
        self._lock = threading.Lock()
        self._state = _ThreadState.NEW
        self._result: object = None
        self._error: BaseException | None = None
        self.is_left = False

    async def result(self, limiter: anyio.CapacityLimiter) -> object:
        """Return what the function returns.

        Raises:
            BaseException: whatever it raises; a cancellation, and then `is_left` says whether its thread runs on.
        """
        try:
            await anyio.to_thread.run_sync(self._run, abandon_on_cancel=True, limiter=limiter)
        except BaseException:
            self._leave()
            raise
        if self._error is not None:
            try:
                raise self._error
            finally:
                # The frame is part of the error's traceback.
                self._error = None
        return self._result

    def _run(self) -> None:
        """In the thread. An error is kept and not raised: a future may fail to carry one of a class of the user's."""
        with self._lock:
            if self._state is _ThreadState.SKIPPED:
                return
            self._state = _ThreadState.RUNNING
        error: BaseException | None = None
        try:
            self._result = self._call()
        except BaseException as raised:  # noqa: BLE001 - it is raised again where the result is waited for
            error = self._error = raised
        if self._generation != fork.Generation.number:
            fork.leave(error)
        with self._lock:
            self._state = _ThreadState.ENDED
            is_left = self.is_left
        if is_left:
            # The loop may have ended.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended, context=self._context)

    def _leave(self) -> None:
        with self._lock:
            if self._state is _ThreadState.NEW:
                self._state = _ThreadState.SKIPPED
            self.is_left = self._state is _ThreadState.RUNNING
