"""The watch over handlers that block their loop, and over leases that are not renewed."""

import logging
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
        warned = False
        plan, runner = self.plan, self.runner
        while True:
            await anyio.sleep(_BLOCKED_WARNING_SECONDS)
            if plan.held:
                runner.tick()
                blocked = time.monotonic() - runner.ticked_at - _BLOCKED_WARNING_SECONDS
            else:
                # The loop was not asked for a sign of life, so the absence of one means nothing.
                blocked, runner.ticked_at = 0.0, time.monotonic()
            is_blocked = blocked > _BLOCKED_WARNING_SECONDS
            if is_blocked and not warned:
                _log.warning(
                    "the event loop of the handlers has been blocked for %.1f s; running: %s. "
                    "Declare a handler that blocks as a plain function: it then runs in a thread.",
                    blocked,
                    ", ".join(runner.running) or "a handler",
                )
            warned = is_blocked
            if plan.renews_async != (blocked < self.settings.blocked_loop_seconds):
                plan.renews_async = not plan.renews_async
                self.changed()
