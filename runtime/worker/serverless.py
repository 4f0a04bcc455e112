"""Drains for platforms where processes sleep: a call does what is due, within a budget of time."""

from collections.abc import Iterable
from dataclasses import dataclass

import anyio

from runtime.agent.agent import Agent
from runtime.agent.known_options import takes_known_options
from runtime.errors import DeclarationError, RuntimeFault
from runtime.settings import Settings
from runtime.worker.drain import Drain
from runtime.worker.execution.attempt import Observer
from runtime.worker.worker import Attempt, Worker

# The rest of a budget is for handlers that still run: nothing new is begun in it.
_TAKING_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Drained:
    """What became of a drain.

    Attributes:
        handled: attempts that succeeded.
        failed: attempts that failed; their deliveries come due again, or are dead letters now.
        left: deliveries that are due and were not handled: call again. None where the database did not say.
        next_due_seconds: when to call again at the latest; 0 with something left, None where nothing waits.
    """

    handled: int
    failed: int
    left: int | None
    next_due_seconds: float | None


@takes_known_options
async def drain(
    agents: Iterable[Agent],
    settings: Settings | None = None,
    *,
    budget: float | None = None,
    observer: Observer | None = None,
    stop: anyio.Event | None = None,
) -> Drained:
    """Run what is due for some agents, and return when nothing is, or when the budget is used up.

    Timers that have come due tick first. No socket is opened, and nothing goes on after the return: this is for
    functions that a scheduler or a webhook calls. Any number may run at once, beside workers too. What still runs at
    the end is cancelled and given back, without spending an attempt.

    Args:
        agents: whose handlers to run.
        settings: where the stream is; read from the environment by default.
        budget: seconds the whole call may take, RUNTIME_BUDGET_SECONDS by default; nothing new is begun in the last
            fifth of it.
        observer: told of every attempt.
        stop: ends it early when it is set: nothing new is begun.

    Raises:
        SettingsError: nothing says where the stream is.
        StoreError: the stream could not be reached within the budget, or not be used.
        DeclarationError: there is no handler.
    """
    settings = settings or Settings.find()
    seconds = settings.budget_seconds if budget is None else budget
    counted = {True: 0, False: 0}

    def count(attempt: Attempt) -> None:
        if attempt.report.outcome != "later":
            counted[attempt.report.outcome is None] += 1
        if observer is not None:
            observer(attempt)

    drainage = Drain()
    worker = Worker(
        agents,
        settings.model_copy(update={"drain_seconds": seconds * (1 - _TAKING_SHARE), "metrics_port": None}),
        observer=count,
        drainage=drainage,
    )
    if all(handler.deliver == "each" for handler in worker.handlers):
        raise DeclarationError(
            'Nothing is kept for handlers with deliver="each", so there is nothing to drain. Run them in a worker.'
        )
    fault: RuntimeFault | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_in_time, worker, seconds * _TAKING_SHARE, stop)
        try:
            await worker.run()
        except RuntimeFault as error:
            # Raised outside of the group, which would wrap it into another.
            fault = error
        tasks.cancel_scope.cancel()
    if fault is not None:
        raise fault
    return Drained(counted[True], counted[False], drainage.left, drainage.next_due_seconds)


async def _stop_in_time(worker: Worker, seconds: float, stop: anyio.Event | None) -> None:
    with anyio.move_on_after(seconds):
        await (stop or anyio.Event()).wait()
    worker.stop()


class Drains:
    """The drains of one process: one at a time; a call during a drain has it look once more.

    Args:
        agents: whose handlers to run.
        settings: where the stream is, and the budget.
    """

    def __init__(self, agents: Iterable[Agent], settings: Settings) -> None:
        self._agents = list(agents)
        self._settings = settings
        self._stop = anyio.Event()
        self._is_running = False
        self._is_called = False

    def stop(self) -> None:
        """Begin nothing new; what drains now ends when what runs has ended."""
        self._stop.set()

    async def drain(self) -> Drained | None:
        """Drain; None where a drain of this process goes on and will look once more for this call's sake.

        Raises:
            StoreError: as for `drain`.
        """
        self._is_called = True
        if self._is_running:
            return None
        self._is_running = True
        try:
            return await self._drain_until_uncalled()
        finally:
            self._is_running = False

    async def _drain_until_uncalled(self) -> Drained:
        until = anyio.current_time() + self._settings.budget_seconds
        total: Drained | None = None
        # A message that was written while a drain ended may have been missed by it: look again.
        while self._is_called and not self._stop.is_set():
            self._is_called = False
            budget = until - anyio.current_time()
            if total is not None and budget < 1:
                break
            found = await drain(self._agents, self._settings, budget=budget, stop=self._stop)
            total = Drained(
                found.handled + (total.handled if total else 0),
                found.failed + (total.failed if total else 0),
                found.left,
                found.next_due_seconds,
            )
        if total is None or self._is_called:
            # A caller was promised another look, and there was no time for it.
            return Drained(total.handled if total else 0, total.failed if total else 0, None, 0.0)
        return total
