"""Steps that are ready at the same time are written by one call, and none of them waits for ever."""

import json
from typing import Any
from uuid import uuid4

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from runtime.client.requester import Requester
from runtime.store.postgres import PostgresStore
from runtime.wakeups import Reachability
from runtime.worker.execution.step_writer import StepWriter
from tests.integration.conftest import until
from tests.worker.test_worker import direct

pytestmark = pytest.mark.anyio


class Gated(PostgresStore):
    """A store whose calls wait at a gate, and are counted there by their steps."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.gate = anyio.Event()
        self.calls: list[int] = []

    async def operate(self, function: str, **arguments: Any) -> Any:
        """Call one of the operations once the gate is open."""
        self.calls.append(len(json.loads(arguments["steps"])))
        await self.gate.wait()
        return await super().operate(function, **arguments)


def writer_to(store: PostgresStore, database: str) -> StepWriter:
    requester = Requester(store, direct(database), uuid4(), (), Reachability(frozenset()))
    return StepWriter(store, requester.submit)


def step(message: int) -> str:
    """A step of a delivery that there is not."""
    given = {"message": message, "subscription": 1, "lease": str(uuid4()), "name": "charge", "key": ""}
    return json.dumps({**given, "occurrence": 1, "value": 7})


async def test_what_is_ready_while_two_calls_are_on_the_road_is_written_by_the_next_one(
    database: str,
) -> None:
    store = Gated(database)
    writer, told = writer_to(store, database), list[Any]()

    async def write(message: int) -> None:
        told.append(await writer.write(step(message)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run)
        async with anyio.create_task_group() as steps:
            for message in (1, 2):
                steps.start_soon(write, message)
                await until(lambda calls=message: len(store.calls) == calls)  # type: ignore[misc]
            for message in range(3, 11):
                steps.start_soon(write, message)
            await wait_all_tasks_blocked()
            store.gate.set()
        tasks.cancel_scope.cancel()
    await store.close()
    assert store.calls == [1, 1, 8]
    assert told == [{"held": False}] * 10


async def test_what_is_ready_when_the_writer_has_ended_is_to_be_written_alone(database: str) -> None:
    store = Gated(database)
    writer, told = writer_to(store, database), list[Any]()

    async def write() -> None:
        told.append(await writer.write(step(1)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as writing, anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            for calls in (1, 2):
                writing.start_soon(write)
                await until(lambda calls=calls: len(store.calls) == calls)  # type: ignore[misc]
            writing.start_soon(write)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        # Two were on the road and one was ready; whoever comes later is told the same.
        assert store.calls == [1, 1]
        assert [
            await writer.write(step(1)),
            await anyio.to_thread.run_sync(writer.write_blocking, step(1)),
        ] == [None] * 2
    assert told == [None] * 3
