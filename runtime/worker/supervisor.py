"""The supervisor: it starts dead processes again, and runs no agents itself, so that no user code can end it."""

import logging
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
from anyio.abc import Process

from runtime.backoff import Restarts

_log = logging.getLogger("runtime.worker.supervisor")

# How long a process has to end after its own drain.
_GRACE_SECONDS = 10.0
_HURRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep running.

    Attributes:
        name: for people.
        command: its command line.
        is_quarantine: whether it runs what has crashed its process before; it is expected to die and never given up.
    """

    name: str
    command: Sequence[str]
    is_quarantine: bool = False


class Supervisor:
    """Keeps processes running until it is told to stop.

    Each child gets a pipe as its standard input and is to end when that closes, so that none is left behind
    when the supervisor itself is killed.

    Args:
        children: what to run.
        drain_seconds: how long a child may take to finish what it runs.

    Attributes:
        given_up: the names of the children that died again and again.
    """

    def __init__(self, children: Sequence[Child], *, drain_seconds: float) -> None:
        self.given_up: list[str] = []
        self._children = children
        self._drain_seconds = drain_seconds
        self._running: dict[str, Process] = {}
        self._stopping = anyio.Event()
        self._hurried = anyio.Event()

    def __repr__(self) -> str:
        return f"<Supervisor [{len(self._running)} of {len(self._children)} running]>"

    @property
    def is_stopping(self) -> bool:
        """Whether it has been told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Have every child drain and end, and start none again."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def hurry(self) -> None:
        """Have every child end at once, without waiting for its handlers."""
        self._hurried.set()
        self._signal(signal.SIGTERM)

    async def run(self) -> None:
        """Run the children until `stop` is called and all have ended, or until every one is given up."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._kill_late)
            async with anyio.create_task_group() as keeping:
                for child in self._children:
                    keeping.start_soon(self._keep, child)
            tasks.cancel_scope.cancel()

    async def _keep(self, child: Child) -> None:
        restarts = Restarts(is_patient=child.is_quarantine)
        while not self.is_stopping:
            began = time.monotonic()
            code = await self._live(child)
            if self.is_stopping:
                return
            lived = time.monotonic() - began
            wait = restarts.died(lived)
            if wait is None:
                self.given_up.append(child.name)
                _log.error(
                    "process %s %s after %.1f s, %d times in a row: it is not started again. The others go on; "
                    "mend what it says above, and start anew.",
                    child.name, ending(code), lived, restarts.deaths,
                )  # fmt: skip
                if self._is_over():
                    self.stop()
                return
            _log.warning(
                "process %s %s after %.1f s; starting it again in %.1f s",
                child.name,
                ending(code),
                lived,
                wait,
            )
            with anyio.move_on_after(wait):
                await self._stopping.wait()

    def _is_over(self) -> bool:
        """Whether only the quarantine process is left, which does nothing by itself."""
        return all(each.is_quarantine or each.name in self.given_up for each in self._children)

    async def _live(self, child: Child) -> int:
        """Live through one process and return its exit code."""
        # A session of its own: Ctrl-C in a terminal reaches the supervisor alone, and the child gets one signal.
        process = await anyio.open_process(
            child.command, stdin=subprocess.PIPE, stdout=None, stderr=None, start_new_session=True
        )
        async with process:
            self._running[child.name] = process
            try:
                if self.is_stopping:
                    process.terminate()
                return await process.wait()
            finally:
                del self._running[child.name]

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            if process.returncode is None:
                process.send_signal(number)

    async def _kill_late(self) -> None:
        """Kill the processes that do not end by themselves."""
        await self._stopping.wait()
        with anyio.move_on_after(self._drain_seconds + _GRACE_SECONDS):
            await self._hurried.wait()
            await anyio.sleep(_HURRY_SECONDS)
        for name, process in self._running.items():
            _log.error("process %s did not end in time and is killed", name)
            process.kill()


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
