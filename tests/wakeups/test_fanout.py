"""Several sources of wake-ups tell several listeners."""

from typing import Any

import anyio

from runtime.wakeups import Listener, Path
from runtime.wakeups.fanout import Fanout


class _Source:
    def __init__(self, path: Path) -> None:
        self.paths = (path,)
        self.doubted = 0

    def doubt(self) -> None:
        self.doubted += 1

    async def run(self, listener: Listener) -> None:
        path = self.paths[0]
        listener.live(path)
        listener.wake(path, 7)
        listener.gap(path, "late")
        listener.prove("nonce")
        listener.lost(path, "closed")
        await anyio.sleep_forever()


class _Recorder:
    def __init__(self, told: list[tuple[Any, ...]], name: str) -> None:
        self._told, self._name = told, name

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments: self._told.append((self._name, method, *arguments))


async def test_every_listener_is_told_of_every_source_in_order() -> None:
    told: list[tuple[Any, ...]] = []
    sources = [_Source("notify"), _Source("broadcast")]
    fanout = Fanout(sources, [_Recorder(told, "second")], [lambda: told.append(("woken",))])
    assert fanout.paths == ("notify", "broadcast")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fanout.run, _Recorder(told, "first"))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert told[:4] == [
        ("first", "live", "notify"),
        ("second", "live", "notify"),
        ("woken",),
        ("first", "wake", "notify", 7),
    ]
    assert {each[1:] for each in told if each[0] == "first"} == {
        each[1:] for each in told if each[0] == "second"
    }
    assert len(told) == 22


def test_a_doubt_reaches_every_source() -> None:
    sources = [_Source("notify"), _Source("broadcast")]
    Fanout(sources).doubt()
    assert [source.doubted for source in sources] == [1, 1]
