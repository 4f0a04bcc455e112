"""The event loops of workers: uvloop where it is installed, where waits, wakes and hops between threads cost less.

A loop ends when one of its tasks raises SystemExit or KeyboardInterrupt, or when `stop()` is called on it. Tasks that
handlers start may do either, so the loops of workers go on until the function they were made for has ended. Handlers
also cancel all the tasks that asyncio names, and replace the factory of tasks: the worker's own tasks are not named
there, and are made without the factory.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dis import opmap
from importlib.util import find_spec
from typing import Any, TypeVar, TypeVarTuple, Unpack

import anyio

from runtime.tracebacks import places_of, text_of

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

_STOPPED = "stopped before Future completed"
_RAISING = {opmap["RAISE_VARARGS"], opmap["RERAISE"]}

is_of_handler: ContextVar[bool] = ContextVar("is_of_handler", default=False)
"""Set in the context of an attempt: the tasks that are made there are the handler's."""

_log = logging.getLogger("runtime.worker")


def run(function: Callable[[Unpack[Arguments]], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """Run an async function on a loop of its own, and return what it returns."""
    return anyio.run(function, *arguments, backend_options={"loop_factory": _make_loop})


def call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Have a loop call a function soon, from any thread; nothing happens if the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


def _make_loop() -> asyncio.AbstractEventLoop:
    """A loop that no task ends."""
    # The wheels of uvloop are for every system but Windows, where asyncio's own choice is kept.
    if find_spec("uvloop") is not None:
        import uvloop

        return _steady(uvloop.Loop)
    name = "SelectorEventLoop" if os.name == "posix" else "ProactorEventLoop"
    return _steady(getattr(asyncio, name))


def _steady(base: Any) -> asyncio.AbstractEventLoop:
    class SteadyLoop(base):  # type: ignore[misc]
        """The loop, begun again until what it runs is done."""

        def create_task(self, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
            if is_of_handler.get():
                return super().create_task(coroutine, **named)  # type: ignore[no-any-return]
            task = asyncio.Task(coroutine, loop=self, **named)
            asyncio._unregister_task(task)
            return task

        def run_until_complete(self, future: Any) -> Any:
            future = asyncio.ensure_future(future, loop=self)
            while True:
                try:
                    return super().run_until_complete(future)
                except (KeyboardInterrupt, SystemExit) as error:
                    if future.done() or (type(error) is KeyboardInterrupt and is_pressed(error)):
                        raise
                    places = places_of(error)
                    _log.error(
                        "a task that a handler started raised %s, which would end the process; the work goes on%s",
                        text_of(error),
                        f"; raised at {', called from '.join(places)}" if places else "",
                    )
                except RuntimeError as error:
                    if future.done() or _STOPPED not in str(error):
                        raise
                    _log.error("a handler stopped the event loop; the work goes on")

    loop: asyncio.AbstractEventLoop = SteadyLoop()
    return loop


def is_pressed(error: KeyboardInterrupt) -> bool:
    """Whether Python itself raised this for Ctrl-C, in a program that leaves the signal to it or to asyncio."""
    if threading.current_thread() is not threading.main_thread():
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    if (
        trace.tb_frame.f_code.co_name == "_on_sigint"
        and trace.tb_frame.f_globals["__name__"] == "asyncio.runners"
    ):
        return True
    # Raised between two instructions or in a call, and by no `raise`.
    is_raised = trace.tb_frame.f_code.co_code[trace.tb_lasti] in _RAISING
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler and not is_raised
