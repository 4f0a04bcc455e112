"""Lifespans: what an agent sets up once in each process, and takes down in the end.

An agent whose lifespan has not started takes no work in that process: its messages wait or go to other processes, and
the other agents are not held up. A lifespan that fails is entered again with growing waits. If no agent is left that
could work, the process ends, and its supervisor decides what follows.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio

from runtime.agent.validation import Lifespan
from runtime.backoff import Restarts
from runtime.errors import LifespanFailed
from runtime.tracebacks import exc_info_of, text_of
from runtime.worker.execution.cancellation import comes_from_outside
from runtime.worker.execution.loggers import steady

_log = logging.getLogger("runtime.worker.lifespan")
_SLOW_SECONDS = 10.0


class Lifespans:
    """Enters the lifespans of a worker's agents, on the loop of user code, and leaves them in the end.

    Args:
        lifespans: by the agent's name; None for an agent without one.
        moved: called with the name of an agent that has opened or closed.
        give_up: called when no agent is left that could work.

    Attributes:
        states: of the agents that are open, what their lifespans yielded.
    """

    def __init__(
        self,
        lifespans: Mapping[str, Lifespan | None],
        *,
        moved: Callable[[str], None],
        give_up: Callable[[], None],
    ) -> None:
        steady()
        self.states: dict[str, Any] = {name: None for name, each in lifespans.items() if each is None}
        self._lifespans = {name: each for name, each in lifespans.items() if each is not None}
        self._moved = moved
        self._give_up = give_up
        self._leaving = anyio.Event()
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._errors: dict[str, BaseException] = {}
        self._failure: LifespanFailed | None = None

    @asynccontextmanager
    async def kept(self, seconds_left: Callable[[], float]) -> AsyncIterator[None]:
        """Enter each lifespan in a task of its own; at the end of the block leave them.

        Args:
            seconds_left: how long leaving may take, asked at the end.

        Raises:
            LifespanFailed: no agent was left that could work.
        """
        async with anyio.create_task_group() as tasks:
            for name, lifespan in self._lifespans.items():
                tasks.start_soon(self._keep, name, lifespan)
            is_cut = True
            try:
                yield
                is_cut = False
            finally:
                self._leave(seconds_left(), is_cut=is_cut)
        if self._failure is not None:
            raise self._failure

    def _leave(self, seconds: float, *, is_cut: bool) -> None:
        self._leaving.set()
        for name, scope in self._scopes.items():
            # Cancelled already, they are left in good order all the same; a cancellation from now on reaches them.
            scope.shield = is_cut
            scope.deadline = anyio.current_time() + seconds if name in self.states else -math.inf

    async def _keep(self, name: str, lifespan: Lifespan) -> None:
        """Live through an agent's lifespan, and through another one after each that failed, until all are left."""
        restarts = Restarts(is_patient=True)
        with anyio.CancelScope(shield=True) as scope:
            self._scopes[name] = scope
            while not self._leaving.is_set():
                began = time.monotonic()
                try:
                    await self._live(name, lifespan)
                except BaseException as error:
                    if comes_from_outside(error):
                        raise
                    if self._leaving.is_set():
                        _log.error(
                            "the lifespan of %s failed in the end; its handlers had finished: %s",
                            name, text_of(error), exc_info=exc_info_of(error),
                        )  # fmt: skip
                        break
                    wait = restarts.died(time.monotonic() - began)
                    assert wait is not None, "patient restarts never end"
                    self._note_failure(name, error, wait)
                    await anyio.sleep(wait)
        if scope.cancelled_caught and name in self.states:
            _log.error("the lifespan of %s did not end in time and was cut off", name)
        self.states.pop(name, None)

    async def _live(self, name: str, lifespan: Lifespan) -> None:
        slow = asyncio.get_running_loop().call_later(
            _SLOW_SECONDS, _log.warning,
            "the lifespan of %s has not started after %.0f s; until then its messages wait", name, _SLOW_SECONDS,
        )  # fmt: skip
        try:
            async with lifespan() as state:
                slow.cancel()
                self.states[name] = state
                self._moved(name)
                try:
                    await self._leaving.wait()
                finally:
                    if not self._leaving.is_set():
                        del self.states[name]
                        self._moved(name)
        finally:
            slow.cancel()
        if not self._leaving.is_set():
            raise RuntimeError("it ended before its process did")

    def _note_failure(self, name: str, error: BaseException, wait: float) -> None:
        self._errors[name] = error
        is_last = not self.states and len(self._errors) == len(self._lifespans)
        then = (
            "no agent is left that could work"
            if is_last
            else f"its messages wait, the other agents go on; entering it again in {wait:.1f} s"
        )
        _log.error(
            "the lifespan of %s failed: %s; %s", name, text_of(error), then, exc_info=exc_info_of(error)
        )
        if is_last and self._failure is None:
            told = "; ".join(f"{each}: {text_of(why)}" for each, why in self._errors.items())
            self._failure = LifespanFailed(
                f"No agent can work here, since every lifespan failed ({told}). What was not finished waits in the "
                "stream; mend the cause and start again."
            )
            self._failure.__cause__ = error
            self._give_up()
