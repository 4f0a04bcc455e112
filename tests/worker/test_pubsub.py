"""Does a handler that gets each message get all of them, though the store is away for a moment?"""

from typing import Any

import anyio
import pytest

from runtime import Agent, Message
from runtime.errors import StoreUnavailable
from runtime.settings import Settings
from runtime.store import Delivery
from runtime.worker.pubsub import PubSub

pytestmark = pytest.mark.anyio


class Readers:
    """Readers of two patterns: the first has a message once, and the second cannot be read at first."""

    def __init__(self) -> None:
        self.fresh_of = {"news.a": [[Message(1, "news.a", 1)]], "news.b": [[Message(2, "news.b", 2)]]}
        self.fails = True

    async def begin(self, _store: object, pattern: str, _since: object) -> Any:
        readers = self

        class _Reader:
            async def fresh(self) -> list[Message[Any]]:
                if pattern == "news.b" and readers.fails:
                    readers.fails = False
                    raise StoreUnavailable("away", maybe_applied=False)
                return readers.fresh_of[pattern].pop() if readers.fresh_of[pattern] else []

        return _Reader()


class Runner:
    """An executor whose handlers take no time."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def know(self, numbers: object, report: object) -> None: ...

    def is_open(self, name: str) -> bool:
        return True

    def hand_over(self, deliveries: list[Delivery]) -> None:
        self.taken += [delivery.message.value for delivery in deliveries]


async def test_what_one_pattern_brought_is_not_lost_when_the_next_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readers, executor = Readers(), Runner()
    monkeypatch.setattr("runtime.worker.pubsub.Reader", readers)
    agent = Agent("ear")

    @agent.on("news.a", "news.b", deliver="each")
    async def hear(value: int) -> None: ...

    pubsub: Any = PubSub(agent.handlers, {"ear.hear": 10}, None, executor, Settings.load())  # type: ignore[arg-type]
    ready = anyio.Event()
    ready.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pubsub.run, ready)
        with anyio.fail_after(60):
            while len(executor.taken) < 2:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert executor.taken == [1, 2]
    assert not readers.fails
