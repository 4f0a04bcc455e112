"""G14: what `context.transaction` wrote is there exactly if the step or the delivery is finished."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from runtime import Agent, BatchContext, Context, Message, Retry, connect
from runtime.agent.transaction import BlockingConnection
from runtime.errors import LeaseLost, SettingsError, StoreError
from runtime.local.test_cluster import Cluster
from runtime.store.postgres import PostgresStore
from tests.faulty_proxy import faulty_proxy
from tests.integration.conftest import connected, outcomes, running, settled, until
from tests.pgbouncer import pooler
from tests.worker.test_steps import deliver, ended, error_of
from tests.worker.test_worker import admin, direct, query

pytestmark = pytest.mark.anyio

SOON = Retry(attempts=5, first_seconds=0, cap_seconds=0)
BOOK = "insert into public.bookings (what, attempt) values ($1, $2)"


@pytest.fixture
async def bookings(database: str) -> str:
    """A database with a table of the user's own."""
    async with connected(database) as connection:
        await connection.execute("create table public.bookings (what text, attempt integer)")
    return database


async def booked(database: str) -> list[tuple[str, int]]:
    async with connected(database) as connection:
        rows = await connection.fetch("select what, attempt from public.bookings order by what, attempt")
    return [(row["what"], row["attempt"]) for row in rows]


async def emitted(database: str, key: str) -> list[Any]:
    async with connect(direct(database)) as stream:
        return [message.value for message in await stream.read(key)]


async def reserve(connection: Any, attempt: int) -> int:
    await connection.execute(BOOK, "reserved", attempt)
    return attempt


async def test_g14_statements_are_kept_with_their_step_and_with_the_end_and_its_emits(bookings: str) -> None:
    agent, reserved = Agent("shop"), list[int]()

    @agent.on("task.input", retry=SOON, emits="task.returned")
    async def sell(order: int, context: Context) -> str:
        reserved.append(await context.step("reserve", reserve, context.attempt, transaction=True))
        context.emit("task.before", context.attempt)
        async with context.transaction() as connection:
            await connection.execute(BOOK, "sold", context.attempt)
            if context.attempt == 1:
                raise ValueError("within the block")
            context.emit("task.within", context.attempt)
        if context.attempt == 2:
            raise ValueError("after the block")
        return f"in attempt {context.attempt}"

    await deliver(bookings, agent, 7)
    assert reserved == [1, 1, 1]
    assert await booked(bookings) == [("reserved", 1), ("sold", 3)]
    assert await emitted(bookings, "task.before") == await emitted(bookings, "task.within") == [3]
    assert await emitted(bookings, "task.returned") == ["in attempt 3"]
    assert await outcomes(admin(bookings)) == {("shop.sell", "failed"): 2, ("shop.sell", "done"): 1}


async def test_g14_a_plain_handler_has_both_forms_in_its_thread(bookings: str) -> None:
    agent = Agent("plain")

    def reserve_here(connection: BlockingConnection, attempt: int) -> int:
        with pytest.raises(asyncpg.UndefinedTableError), connection.transaction():
            connection.execute("select * from public.nothing")
        connection.executemany(BOOK, [("reserved", attempt), ("reserved", attempt + 1)])
        return len(connection.fetch("select * from public.bookings"))

    @agent.on("task.input", retry=SOON)
    def sell(order: int, context: Context) -> None:
        count = context.step_blocking("reserve", reserve_here, 1, transaction=True)
        with context.transaction_blocking() as connection:
            connection.execute(BOOK, "sold", context.attempt)
            assert connection.fetchval("select count(*) from public.bookings") == count + 1
            if context.attempt == 1:
                raise ValueError("not yet")

    @agent.on("task.mixed", retry=SOON)
    async def mixed(order: int, context: Context) -> None:
        """An async handler with a plain function, which runs in a thread."""
        await context.step("reserve", reserve_here, 7, transaction=True)

    async with (
        running([agent], direct(bookings, lease_seconds=600)),
        connect(direct(bookings)) as stream,
        connected(admin(bookings)) as connection,
    ):
        await until(lambda: settled(connection, "plain.sell", "plain.mixed"))
        await stream.send("task.input", 1)
        await until(partial(ended, connection))
        await stream.send("task.mixed", 1)
        await until(partial(ended, connection))
    expected = [("reserved", 1), ("reserved", 2), ("reserved", 7), ("reserved", 8), ("sold", 2)]
    assert await booked(bookings) == expected


@asynccontextmanager
async def held_commits(database: str) -> AsyncIterator[Any]:
    """Have each commit that has written a booking wait for as long as the block lasts; gives the connection."""
    async with connected(admin(database)) as holder:
        await holder.execute(
            "create function public.hold() returns trigger language plpgsql as $$ begin "
            "perform pg_advisory_xact_lock_shared(14); return null; end $$; "
            "create constraint trigger held after insert on public.bookings "
            "deferrable initially deferred for each row execute function public.hold(); "
            "select pg_advisory_lock(14)"
        )
        yield holder


@pytest.mark.parametrize("form", ["step", "end"])
@pytest.mark.parametrize("fault", ["cut", "terminated"])
async def test_g14_a_connection_that_is_lost_at_the_commit_decides_nothing(
    cluster: Cluster, bookings: str, form: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent, attempts = Agent("shop"), list[int]()

    @agent.on("task.input", retry=SOON, emits="task.returned")
    async def sell(order: int, context: Context) -> str:
        attempts.append(context.attempt)
        if form == "step":
            return f"in attempt {await context.step('reserve', reserve, context.attempt, transaction=True)}"
        async with context.transaction() as connection:
            await connection.execute(BOOK, "reserved", context.attempt)
        return f"in attempt {context.attempt}"

    waiting = (
        "select pid from pg_stat_activity where wait_event = 'advisory' and datname = current_database()"
    )

    async def strike(holder: Any, proxy: Any) -> None:
        await until(lambda: holder.fetchval(f"select exists ({waiting})"))
        if fault == "terminated":
            await holder.execute(f"select pg_terminate_backend(pid) from ({waiting}) w")
        else:
            # The server does not notice, and commits as soon as it may.
            await proxy.cut()
        await until(lambda: "was not answered" in caplog.text)
        await holder.execute("select pg_advisory_unlock(14)")

    caplog.set_level("WARNING", "runtime")
    async with (
        faulty_proxy(cluster.server.port) as proxy,
        held_commits(bookings) as holder,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(strike, holder, proxy)
        url = bookings.replace(f":{cluster.server.port}/", f":{proxy.port}/")
        await deliver(bookings, agent, 7, database_url=url)
    last = 1 if fault == "cut" else 2
    assert attempts == list(range(1, last + 1))
    assert await booked(bookings) == [("reserved", last)]
    assert await emitted(bookings, "task.returned") == [f"in attempt {last}"]
    assert (await outcomes(admin(bookings)))["shop.sell", "done"] == 1


@pytest.mark.parametrize("form", ["step", "end"])
async def test_g14_a_frozen_process_commits_nothing(bookings: str, form: str) -> None:
    agent, lost, runs = Agent("shop"), list[Any](), list[int]()
    release = anyio.Event()

    async def take_away(connection: Any, run: int) -> None:
        await connection.execute(BOOK, "reserved", run)
        if run == 1:
            # As a process that is frozen for longer than its lease: nothing renews it.
            await query(bookings, "update runtime.deliveries set lease = gen_random_uuid()")
            await query(bookings, "update runtime.deliveries set visible_at = clock_timestamp()")
            await release.wait()

    @agent.on("task.input", retry=SOON, concurrency=2)
    async def sell(order: int, context: Context) -> None:
        runs.append(run := len(runs) + 1)
        try:
            if form == "step":
                await context.step("reserve", take_away, run, transaction=True)
            else:
                async with context.transaction() as connection:
                    await take_away(connection, run)
        except LeaseLost as error:
            lost.append(error)
            raise
        if run == 2:
            release.set()

    await deliver(bookings, agent, 7)
    assert await booked(bookings) == [("reserved", 2)]
    assert (await outcomes(admin(bookings)))["shop.sell", "done"] == 1
    if form == "step":
        await until(lambda: len(lost) == 1)
        assert "another worker" in str(lost[0])


async def test_what_waits_behind_a_delivery_goes_on_when_a_transaction_has_finished_it(bookings: str) -> None:
    agent, order = Agent("lanes"), list[int]()

    @agent.on("task.ordered", ordered=True)
    async def lane(value: int, context: Context) -> None:
        async with context.transaction() as connection:
            await connection.execute(BOOK, "ordered", value)
        context.emit("task.limited", value)

    @agent.on("task.limited", concurrency_total=1)
    async def limited(value: int, context: Context) -> int:
        order.append(value)
        async with context.transaction() as connection:
            await connection.execute(BOOK, "limited", value)
        return value

    # Neither a sweep nor a lease that ends helps it along.
    settings = direct(bookings, lease_seconds=600, sweep_seconds=600)
    async with running([agent], settings), connected(admin(bookings)) as connection:
        await until(lambda: settled(connection, "lanes.lane", "lanes.limited"))
        async with connect(direct(bookings)) as stream:
            for value in range(10):
                await stream.send("task.ordered", value)
            assert await stream.ask("task.limited", 10) == 10
        await until(partial(ended, connection))
    assert sorted(order) == list(range(11))
    expected = [*(("limited", value) for value in range(11)), *(("ordered", value) for value in range(10))]
    assert await booked(bookings) == expected


async def test_transactions_work_behind_a_transaction_pooler(cluster: Cluster, bookings: str) -> None:
    agent = Agent("pooled")

    @agent.on("task.input", retry=SOON, concurrency=5)
    async def sell(order: int, context: Context) -> None:
        await context.step("reserve", reserve, order, transaction=True)
        async with context.transaction() as connection:
            await connection.execute(BOOK, "sold", order)

    with pooler(cluster.server.port, "transaction") as running_pooler:
        url = running_pooler.url(urlsplit(bookings).path.strip("/"))
        settings = direct(url, lease_seconds=600, poll_fast_seconds=0.02)
        async with running([agent], settings, live=False), connected(admin(bookings)) as connection:
            await until(lambda: settled(connection, "pooled.sell"))
            async with connect(direct(bookings)) as stream:
                for order in range(20):
                    await stream.send("task.input", order)
            await until(partial(ended, connection))
    assert await booked(bookings) == sorted(
        (what, order) for what in ("reserved", "sold") for order in range(20)
    )


async def test_nothing_is_left_in_the_session_for_the_next_transaction(bookings: str) -> None:
    agent, found = Agent("tidy"), list[Any]()

    async def litter(connection: Any) -> None:
        found.append(await connection.fetchval("show idle_in_transaction_session_timeout"))
        await connection.execute(
            "set search_path = nowhere; set role service_role; create temp table leftover (a int)"
        )

    async def look(connection: Any) -> None:
        found.append(await connection.fetchval("select current_user = session_user"))
        found.append(await connection.fetchval("select to_regclass('pg_temp.leftover') is null"))
        found.append(await connection.fetchval("select current_setting('search_path') <> 'nowhere'"))

    @agent.on("task.input", retry=Retry(attempts=1), timeout=90)
    async def sell(order: int, context: Context) -> None:
        await context.step("litter", litter, transaction=True)
        await context.step("look", look, transaction=True)

    await deliver(bookings, agent)
    assert found == ["90s", True, True, True]


async def test_who_finds_each_connection_in_use_is_told_so(bookings: str) -> None:
    store = PostgresStore(bookings, connections=1, request_seconds=1)
    first = await store.begin(idle_seconds=60)
    with pytest.raises(StoreError, match="All 1 connections for transactions"):
        await store.begin(idle_seconds=60)
    await first.roll_back()
    second = await store.begin(idle_seconds=60)
    await second.roll_back()
    await store.close()


async def catch(context: Context) -> None:
    async with context.transaction() as connection:
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.execute("select * from public.nothing")


async def commit(context: Context) -> None:
    async with context.transaction() as connection:
        await connection.execute("commit")


async def open_twice(context: Context) -> None:
    async with context.transaction():
        pass
    async with context.transaction():
        pass


async def use_later(context: Context) -> None:
    async with context.transaction() as connection:
        pass
    await connection.execute("select 1")


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (catch, "Put such a statement into a savepoint"),
        (commit, "ended by a statement"),
        (open_twice, "put everything into one block"),
        (use_later, "released back to the pool"),
    ],
)
async def test_a_mistake_with_a_transaction_is_a_failed_attempt_that_says_so(
    bookings: str, mistake: Any, error: str
) -> None:
    agent = Agent("wrong")

    @agent.on("task.input", retry=Retry(attempts=1))
    async def sell(order: int, context: Context) -> None:
        await mistake(context)

    await deliver(bookings, agent, dead=1)
    assert error in await error_of(bookings)


async def test_where_there_is_no_transaction_an_error_says_what_to_do(bookings: str) -> None:
    alone, agent = Context(Message(1, "task.input", 1), "shop.sell"), Agent("many")
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        async with alone.transaction():
            pass
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        await alone.step("reserve", reserve, 1, transaction=True)

    @agent.on("task.input", batch=10, retry=Retry(attempts=1))
    async def work(values: list[int], context: BatchContext) -> None:
        async with context.transaction():
            pass

    await deliver(bookings, agent, dead=1)
    assert "handles batches" in await error_of(bookings)


PROGRAM = """
import os, sys, anyio
from runtime import Agent, Context, Retry, Worker
from runtime.settings import Settings

agent = Agent("shop")
where = sys.argv[1]

def die_once(when):
    # As if the machine had lost power.
    if not os.path.exists(f"{where}.{when}"):
        open(f"{where}.{when}", "w").close()
        os.kill(os.getpid(), 9)

async def book(connection, what, attempt):
    await connection.execute("insert into public.bookings (what, attempt) values ($1, $2)", what, attempt)
    die_once(f"before {what}")

@agent.on("task.input", retry=Retry(attempts=5, first_seconds=0, cap_seconds=0))
async def sell(order: int, context: Context) -> None:
    await context.step("reserve", book, "reserved", context.attempt, transaction=True)
    context.emit("task.sold", order)
    async with context.transaction() as connection:
        await book(connection, "sold", context.attempt)

async def main() -> None:
    await Worker([agent], Settings.load(supabase_url=None, supabase_key=None, lease_seconds=1, sweep_seconds=1)).run()

anyio.run(main)
"""


async def test_g14_a_worker_that_is_killed_before_each_commit_in_turn_leaves_each_statement_once(
    bookings: str, tmp_path: Path
) -> None:
    program, deaths = tmp_path / "program.py", 0
    program.write_text(PROGRAM)
    async with connected(admin(bookings)) as connection:
        is_over = False
        while not is_over:
            process = await anyio.open_process(
                [sys.executable, str(program), str(tmp_path / "died")],
                env={**os.environ, "DATABASE_URL": bookings},
                stdout=None,
                stderr=None,
            )
            async with process:
                if deaths == 0:
                    await until(lambda: settled(connection, "shop.sell"))
                    async with connect(direct(bookings)) as stream:
                        await stream.send("task.input", 7)
                async with anyio.create_task_group() as tasks:

                    async def stop_at_the_end(process: Any = process) -> None:
                        await until(partial(ended, connection))
                        process.send_signal(signal.SIGTERM)

                    tasks.start_soon(stop_at_the_end)
                    is_over = await process.wait() != -signal.SIGKILL
                    deaths += not is_over
                    tasks.cancel_scope.cancel()
    assert deaths == 2
    # The step was kept in the second attempt, the end in the third.
    assert await booked(bookings) == [("reserved", 2), ("sold", 3)]
    assert await emitted(bookings, "task.sold") == [7]
