"""What a worker has on the runtime's own loop, as other threads reach it."""

import asyncio
from dataclasses import dataclass
from functools import partial

from runtime.wakeups.fanout import Fanout
from runtime.worker import event_loop
from runtime.worker.dispatcher import Dispatcher
from runtime.worker.pubsub import PubSub


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What a worker has on the runtime's own loop."""

    loop: asyncio.AbstractEventLoop
    wakeups: Fanout
    dispatcher: Dispatcher
    pubsub: PubSub

    def wake(self, why: str, message: int | None) -> None:
        """Pass on a hint as if a source of wake-ups had given it. From any thread."""
        event_loop.call_soon(self.loop, partial(self.wakeups.wake, why, message))

    def stop(self, drain_seconds: float) -> None:
        """Take nothing new. From any thread."""
        self.dispatcher.stop(drain_seconds)
        self.pubsub.stop()
