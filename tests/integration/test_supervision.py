"""Do several processes under a supervisor survive what kills one of them? Over a direct connection, as processes."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from anyio.abc import Process

from runtime.local import keys
from tests.integration.conftest import connected, settled, until

pytestmark = pytest.mark.anyio

AGENTS = """
import os, sys
import anyio
from runtime import Agent, Message

steady = Agent("steady")
deadly = Agent("deadly")
looping = Agent("looping")

@steady.on("steady.task", concurrency=20)
async def work(value: int) -> None:
    await anyio.sleep(0.02)

@deadly.on("deadly.task")
async def maybe_die(message: Message[str]) -> None:
    if message.value == "die":
        os._exit(70)

@looping.on("looping.task")
async def never(value: object) -> None: ...

if "LOOP" in os.environ and sys.argv.count("--agent") == 1 and "looping" in sys.argv:
    os._exit(71)
"""


class Run:
    """`runtime run` with a supervisor, and its log."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def children(self) -> list[psutil.Process]:
        """The processes it keeps running."""
        return psutil.Process(self.process.pid).children()

    def said(self, text: str) -> bool:
        """Whether this was logged."""
        return text in self.log.read_text()

    def child(self, name: str) -> psutil.Process | None:
        """The process that runs this agent alone, if it is there."""
        for each in self.children:
            command = each.cmdline()
            if command.count("--agent") == 1 and name in command:
                return each
        return None


@asynccontextmanager
async def supervised(
    url: str, folder: Path, *options: str, source: str = AGENTS, **environment: str
) -> AsyncIterator[Run]:
    """A supervisor over these agents; whatever happens, no process of it is left."""
    agents = folder / "fleet.py"
    agents.write_text(source)
    log = folder / "run.log"
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("RUNTIME_", "SUPABASE_"))
    }
    with log.open("ab") as output:
        process = await anyio.open_process(
            [sys.executable, "-m", "runtime", "run", str(agents), *options],
            stdout=output,
            stderr=output,
            env={
                **kept,
                "DATABASE_URL": url,
                "RUNTIME_LEASE_SECONDS": "1",
                "RUNTIME_SWEEP_SECONDS": "1",
                "RUNTIME_DRAIN_SECONDS": "10",
                **environment,
            },
        )
    run = Run(process, log)
    family: list[psutil.Process] = []
    try:
        yield run
        family = psutil.Process(process.pid).children(recursive=True) if process.returncode is None else []
    finally:
        if process.returncode is None:
            process.terminate()
            with anyio.CancelScope(shield=True), anyio.move_on_after(20):
                await process.wait()
        if process.returncode is None:
            process.kill()
        await process.aclose()
    await until(lambda: not any(each.is_running() for each in family))


async def count(connection: Any, query: str) -> int:
    """The number a query gives."""
    return int(await connection.fetchval(query))


FLEET = ("steady.work", "deadly.maybe_die", "looping.never")


async def test_g5_g6_a_message_that_kills_its_process_ends_as_a_dead_letter_and_takes_no_neighbour_with_it(
    database: str, tmp_path: Path
) -> None:
    admin = database.replace("postgres:", f"{keys.SUPERUSER}:", 1)
    async with supervised(database, tmp_path, "--isolate") as run, connected(admin) as connection:
        await until(lambda: settled(connection, *FLEET))
        await connection.execute(
            "insert into consciousness_stream (key, value) "
            "select 'deadly.task', to_jsonb(case when n = 10 then 'die' else 'live' end) from generate_series(1, 20) n"
        )
        steady = run.child("steady")
        for first in range(0, 400, 100):
            await connection.execute(
                "insert into consciousness_stream (key, value) "
                "select 'steady.task', to_jsonb(n) from generate_series($1::int, $1::int + 99) n",
                first,
            )

        async def is_over() -> bool:
            return not await count(connection, "select count(*) from runtime.deliveries")

        await until(is_over, seconds=90)
        letter = await connection.fetchrow("select reason, error, attempts from runtime.dead_letters")
        assert (letter["reason"], letter["error"]) == ("crashed", "its worker died 5 times while handling it")
        done = await connection.fetch(
            "select s.name, count(*) as runs, count(distinct r.message_id) as messages from runtime.runs r "
            "join runtime.subscriptions s on s.id = r.subscription where r.outcome = 'done' group by 1"
        )
        assert {(row["name"], row["runs"], row["messages"]) for row in done} == {
            ("steady.work", 400, 400),
            ("deadly.maybe_die", 19, 19),
        }
        # Its agent's own process died of it twice at most; then it was the quarantine process's.
        assert run.log.read_text().count("process deadly ended with exit code 70") <= 2
        assert run.said("process quarantine ended with exit code 70")
        assert run.child("steady") == steady
        run.process.terminate()
        with anyio.fail_after(60):
            assert await run.process.wait() == 0, run.log.read_text()[-3000:]


async def test_g6_a_killed_process_is_replaced_and_sigterm_drains_them_all(
    database: str, tmp_path: Path
) -> None:
    admin = database.replace("postgres:", f"{keys.SUPERUSER}:", 1)
    options = ("--processes", "2", "--agent", "steady")
    async with supervised(database, tmp_path, *options) as run, connected(admin) as connection:
        await until(lambda: settled(connection, "steady.work"))

        async def all_there() -> bool:
            return await count(connection, "select count(*) from runtime.workers") == 3

        await until(all_there)
        assert (
            await count(
                connection, "select count(*) from runtime.workers where (details ->> 'is_quarantine')::bool"
            )
            == 1
        )
        assert (
            await count(connection, "select min((details ->> 'rss_bytes')::bigint) from runtime.workers")
            > 1e7
        )
        await connection.execute(
            "insert into consciousness_stream (key, value) "
            "select 'steady.task', to_jsonb(n) from generate_series(1, 2000) n"
        )

        async def some_done() -> bool:
            return await count(connection, "select count(*) from runtime.runs") > 100

        await until(some_done)
        victim = next(each for each in run.children if "never" in each.cmdline())
        victim.send_signal(signal.SIGKILL)
        await until(lambda: run.said("was killed by SIGKILL"))
        await until(lambda: len([each for each in run.children if "never" in each.cmdline()]) == 2)
        run.process.terminate()
        with anyio.fail_after(60):
            assert await run.process.wait() == 0, run.log.read_text()[-3000:]
        rows = await connection.fetchrow(
            "select (select count(*) from runtime.runs where outcome = 'done') as done, "
            "(select count(*) from runtime.deliveries) as left, "
            "(select count(*) from runtime.deliveries where attempts > 0 or crashes > 1) as spent"
        )
        assert rows["done"] + rows["left"] == 2000
        assert rows["spent"] == 0


async def test_g6_an_agent_that_cannot_start_is_given_up_and_the_others_go_on(
    database: str, tmp_path: Path
) -> None:
    async with supervised(database, tmp_path, "--isolate", LOOP="yes") as run:
        await until(
            lambda: (
                run.said("process looping ended with exit code 71") and run.said("it is not started again")
            ),
            seconds=60,
        )
        async with connected(database) as connection:
            await until(lambda: settled(connection, "steady.work"))
            await connection.execute(
                "insert into consciousness_stream (key, value) values ('steady.task', '1')"
            )

            async def is_done() -> bool:
                return bool(await connection.fetchval("select bool_and(processed) from consciousness_stream"))

            await until(is_done)
        run.process.terminate()
        with anyio.fail_after(60):
            # Something was given up: whoever started it should know.
            assert await run.process.wait() == 1


async def test_g9_when_the_supervisor_is_killed_its_processes_drain_by_themselves(
    database: str, tmp_path: Path
) -> None:
    admin = database.replace("postgres:", f"{keys.SUPERUSER}:", 1)
    async with supervised(database, tmp_path, "--processes", "2") as run, connected(admin) as connection:

        async def workers(expected: int) -> bool:
            return await count(connection, "select count(*) from runtime.workers") == expected

        await until(lambda: workers(3))
        family = run.children
        run.process.kill()
        await until(lambda: not any(each.is_running() for each in family))
        # They said goodbye.
        await until(lambda: workers(0))


async def test_what_makes_no_sense_together_is_said(tmp_path: Path) -> None:
    agents = tmp_path / "fleet.py"
    agents.write_text(AGENTS)
    for options, said in (
        (["--processes", "2", "--webhook", "127.0.0.1:0"], "a port has one owner"),
        (["--agent", "nobody"], "There is no agent nobody here, only deadly, looping, steady."),
    ):
        ended = await anyio.run_process(
            [sys.executable, "-m", "runtime", "run", str(agents), *options],
            check=False,
            env={
                **os.environ,
                "DATABASE_URL": "postgresql://127.0.0.1:1/x",
                "RUNTIME_WEBHOOK_SECRET": "x" * 20,
            },
        )
        assert ended.returncode in (1, 2)
        assert said in " ".join(ended.stderr.decode().replace("│", " ").split())
