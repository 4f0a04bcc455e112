"""The watch over handlers that block their loop, and over leases that are not renewed."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio

from runtime.settings import Settings
from runtime.store import Delivery
from runtime.worker.execution.executor import Executor
from runtime.worker.leases import LAPSING_SHARE
from runtime.worker.plan import Plan

_log = logging.getLogger("runtime.worker.dispatcher")
_BLOCKED_WARNING_SECONDS = 1.0
_LOOK_SECONDS = 0.25
# A line that blocks the loop again and again is told once in this time.
_AGAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Watchdog:
    """Looks after the leases that a plan holds and the loop that its handlers run on.

    Attributes:
        plan: the leases, and whether those of handlers on the loop are renewed.
        runner: where handlers run.
        settings: how long a lease lasts, and a loop may be blocked.
        lapse: called with deliveries whose leases are about to end.
        changed: called when the plan renews more or less than before.
    """

    plan: Plan
    runner: Executor
    settings: Settings
    lapse: Callable[[Sequence[Delivery]], None]
    changed: Callable[[], None]

    async def run(self) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_leases)
            tasks.start_soon(self._watch_user_loop)

    async def _watch_leases(self) -> None:
        """End attempts whose leases cannot be renewed in time, before another worker may take them over."""
        while True:
            await anyio.sleep(self.settings.lease_seconds * LAPSING_SHARE / 2)
            if lapsing := self.plan.lapsing(time.monotonic()):
                self.lapse(lapsing)

    async def _watch_user_loop(self) -> None:
        """Notice a handler that blocks the loop of user code, and stop renewing if it does so for long."""
        is_warned = False
        told: dict[str, float] = {}
        plan, runner = self.plan, self.runner
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            if plan.held:
                runner.tick()
            # Without held deliveries the loop is not asked, and its silence means nothing.
            silent = runner.silent_seconds if plan.held else 0.0
            is_blocked = silent > _BLOCKED_WARNING_SECONDS
            if is_blocked and not is_warned:
                _warn(runner, silent, told)
            is_warned = is_blocked
            if plan.renews_async != (silent < self.settings.blocked_loop_seconds):
                plan.renews_async = not plan.renews_async
                self.changed()


def _warn(runner: Executor, silent: float, told: dict[str, float]) -> None:
    """Say what blocks the loop; `told` has the moments at which each place was told last."""
    found = runner.standstills.find()
    now = time.monotonic()
    if found.place and now - told.get(found.place, -math.inf) < _AGAIN_SECONDS:
        return
    told[found.place] = now
    who = found.handler or ("one of " + ", ".join(runner.running) if runner.running else "a task")
    where = f", at {found.place}" if found.place else ""
    _log.warning(
        "%s has blocked the event loop of the handlers for %.1f s%s%s: nothing else runs on it meanwhile. Await what "
        "takes time, or declare the handler as a plain function: it then runs in a thread.",
        who, silent, where, f" ({found.line})" if found.line else "",
    )  # fmt: skip
