"""A way to a server that a test can cut and mend."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import ByteStream, SocketAttribute, TaskGroup

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Way:
    """Forwards TCP to a port, unless cut."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._is_cut = False
        self._open: set[ByteStream] = set()

    async def cut(self) -> None:
        """End every connection and let no new one through."""
        self._is_cut = True
        for stream in list(self._open):
            await anyio.aclose_forcefully(stream)

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    async def carry(self, near: ByteStream) -> None:
        """Forward one connection until either side ends it."""
        if self._is_cut:
            await anyio.aclose_forcefully(near)
            return
        async with near:
            with suppress(*_GONE):
                async with await anyio.connect_tcp("127.0.0.1", self._target) as far:
                    self._open |= {near, far}
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(_pump, near, far, tasks)
                        tasks.start_soon(_pump, far, near, tasks)
                    self._open -= {near, far}


async def _pump(source: ByteStream, target: ByteStream, tasks: TaskGroup) -> None:
    with suppress(*_GONE):
        while True:
            await target.send(await source.receive())
    tasks.cancel_scope.cancel()


@asynccontextmanager
async def way_to(port: int) -> AsyncIterator[Way]:
    """A way to a port of this machine."""
    way = Way(port)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        way.port = listener.extra(SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, way.carry)
            yield way
            tasks.cancel_scope.cancel()
