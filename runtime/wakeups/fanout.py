"""Several sources of wake-ups as one, for several listeners."""

from collections.abc import Callable, Sequence

import anyio

from runtime.wakeups import Listener, Path, Wakeups


class Fanout:
    """Passes on whatever its sources tell, to the listener it runs for and to those beside it.

    Args:
        sources: the sources of wake-ups.
        beside: further listeners, told after the one it runs for.
        woken: what is called at every wake-up.
    """

    def __init__(
        self,
        sources: Sequence[Wakeups],
        beside: Sequence[Listener] = (),
        woken: Sequence[Callable[[], object]] = (),
    ) -> None:
        self.paths: tuple[Path, ...] = tuple(path for source in sources for path in source.paths)
        self._sources = sources
        self._listeners = tuple(beside)
        self._woken = tuple(woken)

    def doubt(self) -> None:
        """Have every source ask for a nonce at once."""
        for source in self._sources:
            source.doubt()

    async def run(self, listener: Listener) -> None:
        """Listen for ever, until cancelled."""
        self._listeners = (listener, *self._listeners)
        async with anyio.create_task_group() as tasks:
            for source in self._sources:
                tasks.start_soon(source.run, self)

    # Called by the sources

    def wake(self, why: str, message: int | None = None) -> None:
        """Tell all of them."""
        for call in self._woken:
            call()
        for each in self._listeners:
            each.wake(why, message)

    def live(self, path: Path) -> None:
        """Tell all of them."""
        for each in self._listeners:
            each.live(path)

    def gap(self, path: Path, why: str) -> None:
        """Tell all of them."""
        for each in self._listeners:
            each.gap(path, why)

    def lost(self, path: Path, why: str) -> None:
        """Tell all of them."""
        for each in self._listeners:
            each.lost(path, why)

    def prove(self, nonce: str) -> None:
        """Tell all of them."""
        for each in self._listeners:
            each.prove(nonce)
