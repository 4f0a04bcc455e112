"""Does a worker keep what it promises? Over a real database, by the direct store and NOTIFY."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from inspect import isawaitable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import Process

from runtime import Agent, Context, Retry, connect
from runtime.client.requester import Requester
from runtime.errors import DeclarationError, StoreUnavailable
from runtime.message import Draft
from runtime.settings import Settings
from runtime.worker.worker import Worker
from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.integration.conftest import connected, outcomes, running, settled, until

pytestmark = pytest.mark.anyio


def direct(url: str, **overrides: Any) -> Settings:
    """Settings of a worker over a direct connection, with short leases."""
    given = {
        "supabase_url": None,
        "supabase_key": None,
        "lease_seconds": 1,
        "sweep_seconds": 1,
        "drain_seconds": 5,
    }
    return Settings.load(database_url=url, **{**given, **overrides})


def admin(url: str) -> str:
    """The same database as the superuser, who may look at the private schema."""
    return url.replace("://postgres", "://supabase_admin")


async def query(url: str, statement: str, *values: Any) -> Any:
    async with connected(admin(url)) as connection:
        return await connection.fetchval(statement, *values)


async def ready(url: str, *names: str) -> None:
    """Wait until what is written now reaches these subscriptions."""
    async with connected(admin(url)) as connection:
        await until(lambda: settled(connection, *names))


async def send(url: str, key: str, *values: Any) -> None:
    async with connect(direct(url)) as stream:
        await stream.send_all([Draft(key, value) for value in values])


# Declarations


def test_two_agents_with_the_same_handler_name_are_refused() -> None:
    agents = [Agent("twin"), Agent("twin")]
    for agent in agents:

        @agent.on("a.b")
        async def work(value: int) -> None: ...

    with pytest.raises(DeclarationError, match=r"twin\.work is declared by two agents"):
        Worker(agents, Settings.load())
    with pytest.raises(DeclarationError, match="No agent has a handler"):
        Worker([Agent("idle")], Settings.load())


Names = Enum("Names", {f"n{number}": f"{number:050}" for number in range(2000)})


async def takes_many(name: Names) -> None: ...


def test_tools_of_one_name_and_tools_too_large_for_a_model_are_refused() -> None:
    one, other, large = Agent("one"), Agent("other"), Agent("large")
    for agent in (one, other):

        @agent.on("a.b", tool="same")
        async def work() -> None: ...

    with pytest.raises(DeclarationError, match=r"one\.work and other\.work are both the tool 'same'"):
        Worker([one, other], Settings.load())

    large.on("a.b", tool="large", name="work")(takes_many)

    with pytest.raises(
        DeclarationError, match=r"The schemas of large\.work, as the tool 'large', take 1\d\d,"
    ):
        Worker([large], Settings.load())


async def test_a_hint_from_outside_wakes_those_who_wait_for_answers_too(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = threading.Event()
    monkeypatch.setattr(Requester, "wake", lambda _: woken.set())
    async with running([counter("hinted")[0]], direct(database, notify=False), live=False) as worker:
        await ready(database, "hinted.note")
        assert not woken.is_set()
        worker.wake("webhook", 1)
        await until(woken.is_set)


async def test_a_handler_with_several_patterns_gets_a_message_once(database: str) -> None:
    seen: list[int] = []
    agent = Agent("many")

    @agent.on("task.output", "task.*", "task.>", "other.key")
    async def note(value: int) -> None:
        seen.append(value)

    async with running([agent], direct(database)):
        await ready(database, "many.note")
        await send(database, "task.output", 1, 2)
        await send(database, "other.key", 3)
        await until(lambda: len(seen) == 3)
    assert sorted(seen) == [1, 2, 3]
    assert await outcomes(admin(database)) == {("many.note", "done"): 3}


# Leases


async def test_g2_a_lease_is_renewed_while_its_handler_runs(database: str) -> None:
    runs: list[int] = []
    agent = Agent("long")

    @agent.on("long.task")
    async def in_task(value: int) -> None:
        runs.append(value)
        await anyio.sleep(3)

    @agent.on("long.task")
    def in_thread(value: int) -> None:
        runs.append(value)
        time.sleep(3)

    other = Agent("long")
    other.handlers = agent.handlers
    async with running([agent], direct(database)), running([other], direct(database)):
        await ready(database, "long.in_task", "long.in_thread")
        await send(database, "long.task", 1)
        await until(lambda: len(runs) == 2)
        await until(lambda: _none_left(database))
    assert len(runs) == 2
    assert await outcomes(admin(database)) == {("long.in_task", "done"): 1, ("long.in_thread", "done"): 1}


async def _none_left(database: str) -> bool:
    return not await query(database, "select exists (select from runtime.deliveries)")


async def test_a_blocked_event_loop_is_warned_of_by_name_and_keeps_its_lease(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []
    agent = Agent("rude")

    @agent.on("rude.task")
    async def block(value: int) -> None:
        runs.append(value)
        time.sleep(4)  # noqa: ASYNC251 - that is the point

    async with running([agent], direct(database)):
        await ready(database, "rude.block")
        await send(database, "rude.task", 1)
        await until(lambda: _none_left(database))
    assert runs == [1]
    assert await outcomes(admin(database)) == {("rude.block", "done"): 1}
    warnings = [record.getMessage() for record in caplog.records if "event loop" in record.getMessage()]
    assert len(warnings) == 1
    assert "rude.block" in warnings[0]


# Whole processes


AGENT = """
import os, signal, time
from runtime import Agent
agent = Agent("proc")

@agent.on("proc.task", concurrency=5)
async def work(value: str) -> None:
    if value == "crash":
        os._exit(7)
    open("handled", "w").close()
    if value == "freeze" and os.environ.get("FREEZES"):
        os.kill(os.getpid(), signal.SIGSTOP)
"""


def _agent_file(folder: Path) -> Path:
    source = folder / "proc_agent.py"
    source.write_text(AGENT)
    return source


def _environment(database: str) -> dict[str, str]:
    own = ("RUNTIME_", "SUPABASE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {**kept, "RUNTIME_LEASE_SECONDS": "1", "RUNTIME_SWEEP_SECONDS": "1", "DATABASE_URL": database}


@asynccontextmanager
async def process(database: str, folder: Path, **environment: str) -> AsyncIterator[tuple[Process, Path]]:
    """A worker process of its own with the agent above, and its log."""
    source, log = _agent_file(folder), folder / f"worker-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        worker = await anyio.open_process(
            [sys.executable, "-m", "runtime", "run", "--quiet", str(source)],
            stdout=output, stderr=output, env={**_environment(database), **environment}, cwd=folder,
        )  # fmt: skip
    try:
        yield worker, log
    finally:
        if worker.returncode is None:
            worker.send_signal(signal.SIGCONT)
            worker.kill()
            await worker.wait()


async def test_g3_a_loop_blocked_for_too_long_loses_its_lease_to_another_worker(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent("proc")
    runs: list[str] = []

    @agent.on("proc.task")
    async def work(value: str) -> None:
        runs.append(value)
        if len(runs) == 1:
            # Hogs the loop until another process has done the same message.
            source, environment = _agent_file(tmp_path), _environment(database)
            with subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-m", "runtime", "run", "--quiet", str(source)],
                env=environment,
                cwd=tmp_path,
            ) as other:
                while not (tmp_path / "handled").exists():
                    time.sleep(0.05)  # noqa: ASYNC251 - that is the point
                other.terminate()

    async with running([agent], direct(database, blocked_loop_seconds=1)) as worker:
        await ready(database, "proc.work")
        await send(database, "proc.task", "one")
        await until(lambda: worker.counts.get("refused") == 1)
        # Its lane counts right again: what comes next is handled.
        await send(database, "proc.task", "two")
        await until(lambda: _none_left(database))
    assert runs == ["one", "two"]
    assert await outcomes(admin(database)) == {("proc.work", "crashed"): 1, ("proc.work", "done"): 2}
    assert "the late result of proc.work on message 1 was refused" in caplog.text


async def test_g3_a_frozen_worker_loses_its_lease_and_its_late_result_is_refused(
    database: str, tmp_path: Path
) -> None:
    async with process(database, tmp_path, FREEZES="1") as (frozen, log):
        await ready(database, "proc.work")
        await send(database, "proc.task", "freeze")
        taken = "select exists (select from runtime.deliveries where lease is not null)"
        await until(lambda: query(database, taken))
        async with process(database, tmp_path):
            await until(lambda: _none_left(database))
        frozen.send_signal(signal.SIGCONT)
        await until(lambda: "was refused: its lease is no longer the current one" in log.read_text())
        frozen.terminate()
        assert await frozen.wait() == 0, log.read_text()
    assert await outcomes(admin(database)) == {("proc.work", "crashed"): 1, ("proc.work", "done"): 1}


@pytest.mark.timeout(180)
async def test_g5_a_message_that_kills_its_process_is_a_dead_letter_and_takes_no_neighbour_with_it(
    database: str, tmp_path: Path
) -> None:
    starts = 0
    async with process(database, tmp_path) as (first, _):
        await ready(database, "proc.work")
        await send(database, "proc.task", *(["fine"] * 20), "crash", *(["fine"] * 20))
        await first.wait()
    while await query(database, "select exists (select from runtime.deliveries)"):
        starts += 1
        assert starts < 12
        async with process(database, tmp_path) as (worker, _):
            while worker.returncode is None and not await _none_left(database):
                await anyio.sleep(0.05)
    letters = "select array_agg(reason || ' ' || (message #>> '{value}')) from runtime.dead_letters"
    assert await query(database, letters) == ["crashed crash"]
    results = await outcomes(admin(database))
    assert results["proc.work", "done"] == 40
    assert results["proc.work", "crashed"] >= 5


# Reports


async def test_g4_k3_an_emit_that_the_database_refuses_fails_alone(database: str) -> None:
    seen: list[int] = []
    agent = Agent("emit")

    @agent.on("emit.input", emits="emit.output", retry=Retry(attempts=1))
    async def work(value: int) -> int:
        return value

    @agent.on("emit.output")
    async def note(value: int) -> None:
        seen.append(value)

    await query(
        database,
        "do $do$ begin create function public.superstitious() returns trigger language plpgsql as "
        "$$ begin raise exception using errcode = '23514', message = 'thirteen is not stored'; end $$; "
        "create trigger superstition before insert on public.consciousness_stream for each row "
        "when (new.key = 'emit.output' and new.value = '13') execute function public.superstitious(); end $do$",
    )
    async with running([agent], direct(database)):
        await ready(database, "emit.work", "emit.note")
        await send(database, "emit.input", *range(20))
        await until(lambda: len(seen) >= 19)
        await until(lambda: _none_left(database))
    assert sorted(seen) == [number for number in range(20) if number != 13]
    results = await outcomes(admin(database))
    assert (results["emit.work", "done"], results["emit.note", "done"]) == (19, 19)
    error = await query(database, "select error from runtime.dead_letters")
    assert "thirteen is not stored" in error


async def test_g5_a_value_without_end_is_a_dead_letter_at_once_and_the_worker_goes_on(database: str) -> None:
    endless: list[Any] = []
    for _ in range(90):
        endless = [endless, endless]
    agent = Agent("large")
    ways: dict[str, Callable[[Context], Any]] = {
        "emits": lambda context: context.emit("large.output", {"deep": endless}),
        "headers": lambda context: context.emit("large.output", 1, headers={"deep": endless}),
        "step": lambda context: context.step("grow", lambda: endless),
        "waits": lambda context: context.wait_for("large.reply", endless),
        "asks": lambda context: context.ask("large.question", endless),
        "broadcasts": lambda context: context.broadcast("large.news", endless),
    }

    @agent.on("large.input", emits="large.output")
    async def work(value: str, context: Context) -> object:
        called = ways[value](context) if value in ways else endless if value == "returns" else value
        return await called if isawaitable(called) else called

    async with running([agent], direct(database)):
        await ready(database, "large.work")
        await send(database, "large.input", *ways, "returns", "a small one")
        await until(lambda: _none_left(database))
    assert await outcomes(admin(database)) == {("large.work", "dead"): 7, ("large.work", "done"): 1}
    errors = await query(database, "select array_agg(distinct error) from runtime.dead_letters")
    assert len(errors) == 1
    assert "InvalidValue: The value takes more than 16 MB in JSON" in errors[0]


async def test_g5_a_failing_handler_is_tried_again_with_backoff_and_then_a_dead_letter(database: str) -> None:
    began: list[float] = []
    agent = Agent("fails")

    @agent.on("fails.task", retry=Retry(attempts=3, first_seconds=0.2))
    async def work(value: int) -> None:
        began.append(time.monotonic())
        raise ValueError("no luck")

    async with running([agent], direct(database)):
        await ready(database, "fails.work")
        await send(database, "fails.task", 1)
        await until(lambda: _none_left(database))
    assert len(began) == 3
    letter = "select error || '|' || traceback from runtime.dead_letters"
    told = await query(database, letter)
    assert told.startswith("ValueError: no luck|Traceback")


# Shutting down


async def test_g9_running_handlers_finish_and_the_rest_is_given_back_without_an_attempt(
    database: str,
) -> None:
    begun: list[int] = []
    go = anyio.Event()
    agent = Agent("drain")

    @agent.on("drain.task", concurrency=2)
    async def work(value: int) -> None:
        begun.append(value)
        await go.wait()

    async with running([agent], direct(database)) as worker:
        await ready(database, "drain.work")
        await send(database, "drain.task", *range(10))
        await until(lambda: len(begun) == 2)
        worker.stop()
        await until(lambda: worker.state == "stopping")
        go.set()
    assert len(begun) == 2
    left = "select count(*) from runtime.deliveries where lease is null and attempts = 0 and crashes = 0"
    assert await query(database, left) == 8
    assert await outcomes(admin(database)) == {("drain.work", "done"): 2}


async def test_g9_what_does_not_finish_in_time_is_cancelled_and_given_back(database: str) -> None:
    begun: list[str] = []
    agent = Agent("stuck")

    @agent.on("stuck.task")
    async def wait(value: int) -> None:
        begun.append("wait")
        await anyio.sleep_forever()

    @agent.on("stuck.task")
    async def swallow(value: int) -> None:
        begun.append("swallow")
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                await anyio.sleep(0.1)
            except BaseException:  # noqa: BLE001 - that is the point
                time.sleep(0.05)  # noqa: ASYNC251

    async with running([agent], direct(database, drain_seconds=0.3)) as worker:
        await ready(database, "stuck.wait", "stuck.swallow")
        await send(database, "stuck.task", 1)
        await until(lambda: len(begun) == 2)
        worker.stop()
    left = "select count(*) from runtime.deliveries where lease is null and attempts = 0 and crashes = 0"
    assert await query(database, left) == 2


async def test_a_stop_in_good_order_is_one_quiet_story(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent("calm")

    @agent.on("calm.task")
    async def work(value: int) -> None: ...

    with caplog.at_level(logging.INFO, "runtime"):
        async with running([agent], direct(database)) as worker:
            await ready(database, "calm.work")
            caplog.clear()
    said = [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name.startswith("runtime")
    ]
    assert said == [("INFO", f"{worker.name} has stopped")]


# The database away, or another one


@pytest.fixture
async def way(database: str) -> AsyncIterator[FaultyProxy]:
    async with faulty_proxy(urlsplit(database).port or 5432) as way:
        yield way


def through(database: str, way: FaultyProxy) -> str:
    return database.replace(f":{urlsplit(database).port}/", f":{way.port}/")


def counter(name: str) -> tuple[Agent, list[int]]:
    seen: list[int] = []
    agent = Agent(name)

    @agent.on(f"{name}.task")
    async def note(value: int) -> None:
        seen.append(value)

    return agent, seen


@asynccontextmanager
async def started(
    worker: Worker, expect: Callable[[BaseException], bool] = lambda _: False
) -> AsyncIterator[None]:
    """A worker that runs, and may end in an error that is expected."""

    async def run() -> None:
        try:
            await worker.run()
        except StoreUnavailable as error:
            if not expect(error):
                raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            yield
        finally:
            worker.stop()


async def test_a_store_away_at_the_start_is_waited_for(
    database: str, way: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    agent, seen = counter("early")
    await way.cut_off()
    worker = Worker([agent], direct(through(database, way)))
    async with started(worker):
        await until(lambda: "the store is away" in caplog.text)
        way.mend()
        await ready(database, "early.note")
        await send(database, "early.task", 1)
        await until(lambda: seen == [1])
    assert caplog.text.count("the store is away") == 1


async def test_a_store_away_at_the_start_does_not_hold_up_a_stop(
    database: str, way: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    await way.cut_off()
    worker = Worker([counter("never")[0]], direct(through(database, way)))
    with anyio.fail_after(60):
        async with started(worker, lambda error: "could not be reached" in str(error)):
            await until(lambda: "the store is away" in caplog.text)


async def test_a_store_away_during_work_costs_time_and_nothing_else(
    database: str, way: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    agent, seen = counter("steady")
    with caplog.at_level(logging.INFO, "runtime"):
        async with running([agent], direct(through(database, way), lease_seconds=30)) as worker:
            await ready(database, "steady.note")
            await send(database, "steady.task", *range(50))
            await until(lambda: len(seen) >= 10)
            await way.cut_off()
            await until(lambda: worker.state == "polling")
            await send(database, "steady.task", *range(50, 100))
            way.mend()
            await until(lambda: len(seen) >= 100)
            await until(lambda: worker.state == "live")
            await until(lambda: _none_left(database))
    assert sorted(seen) == list(range(100))
    assert await outcomes(admin(database)) == {("steady.note", "done"): 100}
    assert caplog.text.count("the store answers again") == caplog.text.count("the store is away")


async def test_g2_a_handler_is_cancelled_before_its_lease_ends_when_renewal_fails(
    database: str, way: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent("long")
    events: list[str] = []
    in_thread = threading.Event()

    @agent.on("long.task")
    async def run_long(value: int) -> None:
        events.append(f"began {value}")
        try:
            await anyio.sleep(60 if len(events) == 1 else 0)
        except asyncio.CancelledError:
            events.append(f"cancelled {value}")
            raise
        events.append(f"ended {value}")

    @agent.on("long.thread")
    def run_in_thread(value: int) -> None:
        in_thread.wait(10)

    async with running([agent], direct(through(database, way), lease_seconds=6)) as worker:
        await ready(database, "long.run_long", "long.run_in_thread")
        await send(database, "long.task", 1)
        await send(database, "long.thread", 1)
        await until(lambda: events == ["began 1"] and worker.counts["taken"] == 2)
        await way.cut_off()
        await until(lambda: events == ["began 1", "cancelled 1"])
        # Its lease had not ended: nobody else could have begun it.
        leased = (
            "select bool_and(visible_at > clock_timestamp()) from runtime.deliveries where lease is not null"
        )
        assert await query(database, leased)
        await until(lambda: worker.counts["leases lapsed"] == 2)
        way.mend()
        await until(lambda: events[-1] == "ended 1")
        in_thread.set()
    # Together or one after the other, as they were taken.
    lapses = [each for each in caplog.messages if "leases could not be renewed and end now" in each]
    assert all(any(name in each for each in lapses) for name in ("long.run_in_thread", "long.run_long"))
    assert events == ["began 1", "cancelled 1", "began 1", "ended 1"]


async def test_a_store_away_during_a_stop_holds_it_up_for_the_deadline_only(
    database: str, way: FaultyProxy
) -> None:
    agent, _ = counter("bye")
    worker = Worker([agent], direct(through(database, way), drain_seconds=0.2))
    with anyio.fail_after(60):
        async with started(worker, lambda error: "could not be reached" in str(error)):
            await ready(database, "bye.note")
            await way.cut_off()
            await until(lambda: worker.state == "polling")


async def test_a_database_reset_under_a_running_worker_is_subscribed_to_again(
    cluster: Any, database: str
) -> None:
    agent, seen = counter("reset")
    name = urlsplit(database).path[1:]
    async with running([agent], direct(database)) as worker:
        await ready(database, "reset.note")
        await send(database, "reset.task", 1, 2, 3)
        await until(lambda: len(seen) == 3)
        await anyio.to_thread.run_sync(cluster.drop_database, name)
        await until(lambda: worker.state == "polling")
        await anyio.to_thread.run_sync(
            cluster.execute, f"create database {name} template runtime_template owner postgres"
        )
        await ready(database, "reset.note")
        # The ids begin anew, and are known from before.
        await send(database, "reset.task", 4, 5, 6)
        await until(lambda: len(seen) == 6)
        await until(lambda: worker.state == "live")
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]


# What the database warns of


async def test_d4_two_projects_with_one_name_of_an_agent_are_warned_of_in_both_logs(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Agent("shop"), Agent("shop")

    @first.on("order.placed", name="handle")
    async def handle(value: int) -> None: ...

    @second.on("invoice.paid", name="handle")
    async def handle_too(value: int) -> None: ...

    # Each listens for wake-ups all the same; a heartbeat a second.
    async with running([first], direct(database)) as one:
        await ready(database, "shop.handle")
        async with running([second], direct(database)) as other:
            await until(lambda: len(_warned(caplog, "another name")) == 2)
    assert all(one.name in said and other.name not in said for said in _warned(caplog, "another name"))


async def test_t2_a_trigger_that_is_off_is_said_by_whoever_runs(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent("shop")

    @agent.on("order.placed")
    async def handle(value: int) -> None: ...

    async with running([agent], direct(database)):
        await query(database, "alter table public.consciousness_stream disable trigger fan_out")
        await until(lambda: len(_warned(caplog, "fan_out")) == 1)
        await query(database, "alter table public.consciousness_stream enable trigger fan_out")


def _warned(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


async def test_a_handler_that_blocks_the_loop_is_named_with_its_line(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent, told = Agent("proc"), threading.Event()

    def wait_for_the_warning() -> None:
        told.wait(60)

    @agent.on("proc.task")
    async def work(value: str) -> None:
        wait_for_the_warning()

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "has blocked the event loop" in record.getMessage():
                told.set()

    watchdog = logging.getLogger("runtime.worker.dispatcher")
    hears = Hears()
    watchdog.addHandler(hears)
    try:
        async with running([agent], direct(database)):
            await ready(database, "proc.work")
            await send(database, "proc.task", "one")
            await until(lambda: _none_left(database))
    finally:
        watchdog.removeHandler(hears)
    place = f"{__file__}:{wait_for_the_warning.__code__.co_firstlineno + 1} in wait_for_the_warning (told.wait(60))"
    [line] = [each.getMessage() for each in caplog.records if "has blocked" in each.getMessage()]
    assert line.startswith("proc.work has blocked the event loop of the handlers for")
    assert f", at {place}: nothing else runs" in line
