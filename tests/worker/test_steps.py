"""G12: a finished step is never run again for its delivery, whoever dies when. Over a direct connection."""

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from runtime import Agent, BatchContext, Context, Message, Retry, RetryLater, Step, connect
from runtime.agent.step import MAX_STEP_BYTES
from runtime.errors import InvalidValue, LeaseLost, NotAwaited
from runtime.local.test_cluster import Cluster
from tests.faulty_proxy import faulty_proxy
from tests.integration.conftest import connected, outcomes, running, settled, until
from tests.worker.test_worker import admin, direct

pytestmark = pytest.mark.anyio

SOON = Retry(attempts=5, first_seconds=0, cap_seconds=0)


class Receipt(BaseModel):
    """What a charge returns."""

    id: int
    note: str = ""


async def deliver(database: str, agent: Agent, value: Any = 1, *, dead: int = 0, **settings: Any) -> None:
    """Send one message to the agent, and wait until it is finished or dead."""
    settings = {"lease_seconds": 600, **settings}
    url = settings.pop("database_url", database)
    async with running([agent], direct(url, **settings)), connected(admin(database)) as connection:
        [name] = [handler.name for handler in agent.handlers]
        await until(lambda: settled(connection, name))
        async with connect(direct(database)) as stream:
            await stream.send("task.input", value)
        await until(partial(ended, connection))
        assert await connection.fetchval("select count(*) from runtime.dead_letters") == dead


async def ended(connection: Any) -> bool:
    """Whether nothing waits or runs."""
    return not await connection.fetchval("select exists (select from runtime.deliveries)")


async def error_of(database: str) -> str:
    """The error of the only dead letter."""
    async with connected(admin(database)) as connection:
        return str(await connection.fetchval("select error from runtime.dead_letters"))


async def test_g12_a_finished_step_is_not_run_again_and_keeps_its_type(database: str) -> None:
    agent, charged, ended_with = Agent("shop"), list[int](), list[Any]()

    async def charge(order: int) -> Receipt:
        charged.append(order)
        return Receipt(id=order)

    def mail(step: Step, to: str) -> list[str]:
        return [to, step.idempotency_key, str(step.attempt)]

    @agent.on("task.input", retry=SOON)
    async def sell(order: int, context: Context) -> None:
        receipt = await context.step("charge", charge, order)
        mails = [await context.step("mail", partial(mail, to=each)) for each in ("ada", "bob")]
        ended_with.append((context.attempt, receipt, mails))
        if context.attempt < 3:
            raise ValueError("not yet")

    await deliver(database, agent, 7)
    assert charged == [7]
    assert [attempt for attempt, *_ in ended_with] == [1, 2, 3]
    for _, receipt, mails in ended_with:
        assert receipt == Receipt(id=7)
        assert [to for to, *_ in mails] == ["ada", "bob"]
        # The same for every attempt, and another one for each occurrence.
        assert mails == ended_with[0][2]
        assert len({key for _, key, _ in mails}) == 2


async def test_a_plain_handler_takes_steps_in_its_thread(database: str) -> None:
    agent, charged, results = Agent("plain"), list[int](), list[Any]()

    def charge(order: int) -> Receipt:
        charged.append(order)
        return Receipt(id=order)

    async def wrong() -> None: ...

    @agent.on("task.input", retry=SOON)
    def sell(order: int, context: Context) -> None:
        results.append(context.step_blocking("charge", charge, order))
        if context.attempt == 1:
            raise ValueError("not yet")
        with pytest.raises(NotAwaited, match="async function"):
            context.step_blocking("wrong", wrong)

    await deliver(database, agent, 7)
    assert charged == [7]
    assert results == [Receipt(id=7)] * 2


async def test_steps_of_one_name_at_once_need_a_key(database: str) -> None:
    agent, drafted, results = Agent("writer"), list[str](), list[Any]()

    async def draft(chapter: str) -> str:
        drafted.append(chapter)
        await anyio.lowlevel.checkpoint()
        return chapter.upper()

    async def rough(chapter: str) -> str:
        await anyio.lowlevel.checkpoint()
        return chapter

    @agent.on("task.input", retry=SOON)
    async def write(value: int, context: Context) -> None:
        chapters = ["one", "two", "three"]
        with pytest.raises(InvalidValue, match="give each a key"):
            await asyncio.gather(*(context.step("rough", rough, each) for each in chapters))
        results.append(
            await asyncio.gather(*(context.step("chapter", draft, each, key=each) for each in chapters))
        )
        if context.attempt == 1:
            raise ValueError("not yet")

    await deliver(database, agent)
    assert results == [["ONE", "TWO", "THREE"]] * 2
    assert drafted == ["one", "two", "three"]


async def test_a_step_has_a_retry_and_a_timeout_of_its_own(database: str) -> None:
    agent, tries, late, attempts = Agent("shop"), list[int](), list[int](), list[int]()

    async def flaky(step: Step) -> int:
        tries.append(step.attempt)
        if step.attempt < 3:
            raise OSError("not yet")
        return step.attempt

    async def slow() -> None:
        late.append(1)
        await anyio.sleep_forever()

    async def busy() -> None:
        raise RetryLater(0, "the other side is busy")

    @agent.on("task.input", retry=SOON)
    async def sell(value: int, context: Context) -> None:
        attempts.append(context.attempt)
        assert await context.step("flaky", flaky, retry=SOON) == 3
        with pytest.raises(TimeoutError):
            await context.step("slow", slow, timeout=0.01)
        if len(attempts) == 1:
            # This is about the delivery, not about the step: its slot goes to others meanwhile.
            await context.step("busy", busy, retry=SOON)

    await deliver(database, agent)
    assert tries == [1, 2, 3]
    assert len(late) == len(attempts) == 2


@pytest.mark.parametrize(
    ("function", "options", "error"),
    [
        pytest.param(lambda: "x" * MAX_STEP_BYTES, {}, "takes 1.0 MB as JSON", id="too large"),
        pytest.param(lambda: object(), {}, "no JSON form", id="no JSON"),
        pytest.param(lambda: "seven", {"returns": int}, "does not fit its type", id="another type"),
        pytest.param(lambda: 1, {"timeout": -1}, "number of seconds above 0", id="timeout"),
        pytest.param(lambda: 1, {"key": "k" * 256}, "at most 255 bytes", id="key"),
        pytest.param(3, {}, "needs a function", id="no function"),
    ],
)
async def test_what_can_never_be_kept_is_a_dead_letter_at_once(
    database: str, function: Any, options: dict[str, Any], error: str
) -> None:
    agent = Agent("wrong")

    @agent.on("task.input", retry=SOON)
    async def work(value: int, context: Context) -> None:
        await context.step("work", function, **options)

    await deliver(database, agent, dead=1)
    assert error in await error_of(database)
    assert await outcomes(admin(database)) == {("wrong.work", "dead"): 1}


async def test_a_batch_takes_no_steps_and_a_context_of_a_test_keeps_them_nowhere(database: str) -> None:
    agent = Agent("many")

    @agent.on("task.input", batch=10, retry=Retry(attempts=1))
    async def work(values: list[int], context: BatchContext) -> None:
        await context.step("work", lambda: 1)

    await deliver(database, agent, dead=1)
    assert "handles batches" in await error_of(database)
    alone = Context(Message(1, "task.input", 1), "many.work")
    assert await alone.step("work", lambda: (1, 2)) == [1, 2]
    assert await alone.step("work", lambda: 2, returns=float) == 2.0


async def test_g12_a_result_waits_for_a_database_that_is_away(
    cluster: Cluster, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent, charged = Agent("shop"), list[int]()
    caplog.set_level(logging.WARNING, "runtime")
    async with faulty_proxy(cluster.server.port) as proxy:
        url = database.replace(f":{cluster.server.port}/", f":{proxy.port}/")

        async def charge(order: int) -> int:
            charged.append(order)
            proxy.refusing = True
            await proxy.cut()
            return order

        @agent.on("task.input", retry=SOON)
        async def sell(order: int, context: Context) -> None:
            await context.step("charge", charge, order)

        async def come_back() -> None:
            await until(lambda: "cannot be stored yet" in caplog.text)
            proxy.refusing = False

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(come_back)
            await deliver(database, agent, 7, database_url=url)
    assert charged == [7]
    assert await outcomes(admin(database)) == {("shop.sell", "done"): 1}


async def test_g12_a_frozen_process_keeps_no_step_for_its_successor(database: str) -> None:
    agent, charged, lost = Agent("shop"), list[str](), list[Any]()
    release = anyio.Event()

    async def charge(worker: str) -> str:
        charged.append(worker)
        if len(charged) == 1:
            # As a process that is frozen for longer than its lease: nothing renews it.
            async with connected(admin(database)) as connection:
                await connection.execute("update runtime.deliveries set lease = gen_random_uuid()")
                await connection.execute("update runtime.deliveries set visible_at = clock_timestamp()")
            await release.wait()
        return worker

    @agent.on("task.input", retry=SOON, concurrency=2)
    async def sell(order: int, context: Context) -> None:
        if charged:
            assert await context.step("charge", charge, "second") == "second"
            release.set()
            return
        try:
            await context.step("charge", charge, "first")
        except LeaseLost as error:
            lost.append(error)
            raise

    await deliver(database, agent, 7)
    await until(lambda: len(lost) == 1)
    assert charged == ["first", "second"]
    assert "another worker" in str(lost[0])


async def test_a_step_that_is_not_asked_for_any_more_is_told_once(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent("shop")

    @agent.on("task.input", retry=SOON, version="3")
    async def sell(order: int, context: Context) -> None:
        if context.attempt == 1:
            await context.step("old name", lambda: 1)
            raise ValueError("a deploy")

    caplog.set_level(logging.WARNING, "runtime.handlers")
    await deliver(database, agent, 7)
    told = [record.getMessage() for record in caplog.records if "no longer asks" in record.getMessage()]
    assert len(told) == 1
    assert (
        "step 'old name' is stored for message 1, and shop.sell of version 3 no longer asks for it" in told[0]
    )


PROGRAM = """
import os, sys, anyio
from runtime import Agent, Context, Retry, Worker
from runtime.settings import Settings

agent = Agent("shop")
where = sys.argv[1]

def note(name: str) -> str:
    with open(where, "a") as file:
        file.write(name + "\\n")
    return name

@agent.on("task.input", retry=Retry(attempts=5, first_seconds=0, cap_seconds=0))
async def sell(order: int, context: Context) -> None:
    for name in ("reserve", "charge", "ship"):
        await context.step(name, note, name)
        # Dies once after each step, as if the machine had lost power.
        if not os.path.exists(f"{where}.{name}"):
            open(f"{where}.{name}", "w").close()
            os.kill(os.getpid(), 9)
    note("end")

async def main() -> None:
    await Worker([agent], Settings.load(supabase_url=None, supabase_key=None, lease_seconds=1, sweep_seconds=1)).run()

anyio.run(main)
"""


async def test_g12_a_worker_that_is_killed_after_each_step_in_turn_comes_to_the_same_end(
    database: str, tmp_path: Path
) -> None:
    program, notes = tmp_path / "program.py", tmp_path / "notes"
    program.write_text(PROGRAM)
    notes.touch()
    deaths = 0
    async with connected(admin(database)) as connection:
        while "end" not in notes.read_text().split():
            process = await anyio.open_process(
                [sys.executable, str(program), str(notes)],
                env={**os.environ, "DATABASE_URL": database},
                stdout=None,
                stderr=None,
            )
            async with process:
                if deaths == 0:
                    await until(lambda: settled(connection, "shop.sell"))
                    async with connect(direct(database)) as stream:
                        await stream.send("task.input", 7)
                async with anyio.create_task_group() as tasks:

                    async def stop_at_the_end(process: Any = process, tasks: Any = tasks) -> None:
                        await until(lambda: "end" in notes.read_text().split(), seconds=120)
                        await until(partial(ended, connection))
                        process.send_signal(signal.SIGTERM)

                    tasks.start_soon(stop_at_the_end)
                    if await process.wait() == -signal.SIGKILL:
                        deaths += 1
                        tasks.cancel_scope.cancel()
    assert notes.read_text().split() == ["reserve", "charge", "ship", "end"]
    assert deaths == 3
