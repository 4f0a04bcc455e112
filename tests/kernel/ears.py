"""What was announced, to whom? A listener on channels, which knows when it has heard all there was."""

from typing import Any
from uuid import uuid4

import anyio

from tests.kernel.driver import Worker


class Ears:
    """Listens for some workers, over a connection of its own."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._heard: list[str] = []
        self._marks: set[str] = set()
        self._marked = anyio.Event()

    def _take(self, _connection: object, _pid: int, channel: str, payload: str) -> None:
        if payload in self._marks:
            self._marked.set()
        else:
            self._heard.append(channel)

    async def listen(self, *channels: str) -> None:
        """Hear these from now on."""
        for channel in channels:
            await self._connection.add_listener(channel, self._take)

    async def heard(self) -> list[str]:
        """The channels that were called since the last time, once for each call.

        Notifications come in the order of the commits, so one of our own marks the end of what came before.
        """
        mark, self._marked = uuid4().hex, anyio.Event()
        self._marks.add(mark)
        await self._connection.execute("select pg_notify('ears', $1)", mark)
        with anyio.fail_after(60):
            await self._marked.wait()
        heard, self._heard = self._heard, []
        return heard


async def ears(connection: Any, *workers: Worker) -> Ears:
    """Ears for these workers."""
    listening = Ears(connection)
    await listening.listen("ears", *[worker.channel for worker in workers])
    return listening
