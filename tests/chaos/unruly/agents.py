"""Handlers that do what a worker must outlive: odd exceptions, threads that run on, children, scopes left open."""

import asyncio
import logging
import logging.config
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import anyio

from runtime import Agent, Context, Message, Reject, Retry
from tests.chaos.ledger import Notes

# Two attempts, so that all of it happens again; then each is a dead letter, and that is right.
RETRY = Retry(attempts=2, first_seconds=0.05, cap_seconds=0.5)

notes = Notes()
unruly = Agent("unruly")


def _raise(error: type[BaseException]) -> Callable[..., Any]:
    def method(self: object, *args: object) -> Any:
        raise error("looked at")

    return method


class Mute(Exception):
    """It has no words."""

    __str__ = __repr__ = _raise(KeyboardInterrupt)


class Faceless(BaseException):
    """Whatever is asked of it raises."""

    __class__ = property(_raise(SystemExit))  # type: ignore[assignment]
    __cause__ = property(_raise(SystemExit))  # type: ignore[assignment]
    __traceback__ = property(_raise(SystemExit))  # type: ignore[assignment]


def _cyclic() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


ODD: tuple[Callable[[], BaseException], ...] = (
    KeyboardInterrupt,
    lambda: SystemExit(3),
    GeneratorExit,
    lambda: StopIteration(1),
    asyncio.CancelledError,
    Mute,
    Faceless,
    _cyclic,
    lambda: ValueError("x" * 5_000_000),
    lambda: ExceptionGroup("several", [ExceptionGroup("inner", [Reject("never")])]),
    lambda: BaseExceptionGroup("several", [SystemExit(1), KeyboardInterrupt()]),
)


@unruly.on("unruly.message", retry=RETRY)
async def raises(message: Message[int], context: Context) -> None:
    """Raise something odd, here or in a task."""
    with notes.attempt(context.handler, message, message.value):
        logging.config.dictConfig({"version": 1})
    error = random.choice(ODD)()
    if random.random() < 0.2:
        task = asyncio.create_task(_raising(random.choice([SystemExit, KeyboardInterrupt, ValueError])))
        await asyncio.wait([task])
        task.exception() if not task.cancelled() else None
    raise error


async def _raising(kind: type[BaseException]) -> None:
    raise kind("in a task")


@unruly.on("unruly.message", retry=RETRY, timeout=0.05, concurrency=2)
def lingers(message: Message[int], context: Context) -> None:
    """Run on in the thread after the time is over."""
    with notes.attempt(context.handler, message, message.value):
        time.sleep(random.uniform(0, 0.3))
    raise KeyboardInterrupt


@unruly.on("unruly.message", retry=RETRY, concurrency=1)
def forks(message: Message[int], context: Context) -> None:
    """Start children, end some of them by signals, and have one come back from the handler."""
    with notes.attempt(context.handler, message, message.value):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join()
        pid = os.fork()
    if pid == 0:
        sys.exit(3)
    os.waitpid(pid, 0)


@unruly.on("unruly.message", retry=RETRY, concurrency=2)
async def leaves(message: Message[int], context: Context) -> None:
    """Leave a scope open whose time will be over, and cancel the task that others will run in."""
    with notes.attempt(context.handler, message, message.value):
        anyio.CancelScope(deadline=anyio.current_time() + 0.01).__enter__()
        task = asyncio.current_task()
        assert task is not None
        if random.random() < 0.5:
            task.cancel()
