"""Results of steps, written together: what is ready at the same time crosses the road in one call."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import anyio

from runtime.errors import StoreError
from runtime.store import Store
from runtime.worker.event_loop import call_soon

Submit: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], "Future[Any]"]
Written: TypeAlias = "dict[str, Any] | None"
"""What the database said of one step; None where it has to be written alone."""

# What is ready while so many calls are on the road waits for the first of them to come back.
_CALLS: Final = 2
_MOST_STEPS: Final = 200
_MOST_CHARACTERS: Final = 2**20


@dataclass(frozen=True, slots=True)
class _ReadyStep:
    """A step that is to be written, as JSON text, and whom to tell: a task of that loop, or a thread."""

    text: str
    future: "asyncio.Future[Written] | Future[Written]"
    loop: asyncio.AbstractEventLoop | None


class StepWriter:
    """Writes the steps of all handlers of a worker. Made on the loop of the store.

    One step that cannot be written holds up no other: of a call that fails, each step has to be written alone.

    Args:
        store: where messages live.
        submit: runs work on the loop of the store, from any thread.
    """

    def __init__(self, store: Store, submit: Submit) -> None:
        self.store = store
        self.submit = submit
        self._loop = asyncio.get_running_loop()
        self._ready: deque[_ReadyStep] = deque()
        self._called = anyio.Event()
        self._is_called = False
        self._is_closed = False

    async def write(self, text: str) -> Written:
        """Write one step, given as the JSON text of an object that `stream_steps` takes; from any loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Written] = loop.create_future()
        self._add(_ReadyStep(text, future, loop))
        return await future

    def write_blocking(self, text: str) -> Written:
        """As `write`, from a thread."""
        future: Future[Written] = Future()
        self._add(_ReadyStep(text, future, None))
        return future.result()

    async def run(self) -> None:
        """Write what is ready, until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(_CALLS):
                    tasks.start_soon(self._write_ready)
        finally:
            self._is_closed = True
            self._drop()

    def _add(self, step: _ReadyStep) -> None:
        self._ready.append(step)
        if self._is_closed:
            # The last drop may have come before this step.
            self._drop()
        elif not self._is_called:
            # One wake-up takes along every step that is ready by then.
            self._is_called = True
            call_soon(self._loop, self._wake)

    def _wake(self) -> None:
        self._is_called = False
        self._called.set()

    def _drop(self) -> None:
        _tell((step, None) for step in iter(self._next, None))

    def _next(self) -> _ReadyStep | None:
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    async def _write_ready(self) -> None:
        while True:
            while batch := self._batch():
                await self._write(batch)
            if self._called.is_set():
                self._called = anyio.Event()
            await self._called.wait()

    def _batch(self) -> list[_ReadyStep]:
        batch: list[_ReadyStep] = []
        room = _MOST_CHARACTERS
        while self._ready and len(batch) < _MOST_STEPS and (not batch or len(self._ready[0].text) <= room):
            batch.append(step := self._ready.popleft())
            room -= len(step.text)
        return batch

    async def _write(self, batch: list[_ReadyStep]) -> None:
        written: list[Written] = [None] * len(batch)
        try:
            answer = await self.store.operate("stream_steps", steps=f"[{','.join(s.text for s in batch)}]")
            if len(answer) == len(batch):
                written = answer
        except StoreError:
            # Each step is tried again alone, and tells of its own trouble.
            pass
        finally:
            _tell(zip(batch, written, strict=True))


def _tell(results: Iterable[tuple[_ReadyStep, Written]]) -> None:
    """Tell each of its result: threads at once, and all tasks of a loop in one go."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Any, Written]]] = {}
    for step, written in results:
        if step.loop is None:
            step.future.set_result(written)
        else:
            by_loop.setdefault(step.loop, []).append((step.future, written))
    for loop, each in by_loop.items():
        call_soon(loop, partial(_set_results, each))


def _set_results(results: list[tuple[Any, Written]]) -> None:
    for future, written in results:
        # The attempt may have been cancelled meanwhile.
        if not future.done():
            future.set_result(written)
