"""Does what surrounds handlers hold in real processes: killed, drained, reloaded, and when an agent cannot start?"""

import os
import signal
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import anyio
import psutil
import pytest

from runtime.cli.reload import Reloader
from runtime.local import keys
from tests.integration.conftest import connected, settled, until
from tests.integration.test_supervision import Run, count, supervised

pytestmark = pytest.mark.anyio

SOURCE = """
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
import anyio
from runtime import Agent, Context

agent = Agent("shop")
diary = Path(__file__).with_name("diary")

class State:
    def __init__(self) -> None:
        self.pid, self.is_open = os.getpid(), True

class Receipt:
    def __init__(self, number: int) -> None:
        self.number = number

def note(text: str) -> None:
    with diary.open("a") as file:
        file.write(f"{os.getpid()} {text}\\n")

@agent.lifespan
async def opened() -> AsyncIterator[State]:
    if diary.with_name("closed").exists():
        raise ConnectionError("the shop is closed")
    state = State()
    note("up VERSION")
    yield state
    await anyio.sleep(0.05)
    state.is_open = False
    note("down VERSION")

@agent.provide
def receipt(state: State, context: Context) -> Iterator[Receipt]:
    assert state.is_open
    yield Receipt(context.message.id)
    assert state.is_open

@agent.middleware
async def stamp(context: Context, call_next):
    return {**await call_next(), "stamped": context.state.pid}

@agent.on("order", emits="order.packed", start="earliest")
async def pack(number: int, receipt: Receipt) -> dict[str, int]:
    await anyio.sleep(0.02)
    note(f"packed {number}")
    return {"number": number, "pid": os.getpid(), "receipt": receipt.number}

@agent.on("order", emits="order.sent", start="earliest")
def send(number: int, receipt: Receipt) -> dict[str, int]:
    note(f"sent {number}")
    return {"number": number, "pid": os.getpid(), "receipt": receipt.number}
"""
HANDLERS = ("shop.pack", "shop.send")
ORDERS = (
    "insert into consciousness_stream (key, value) "
    "select 'order', to_jsonb(n) from generate_series($1::int, $2::int) n"
)


def diaries(folder: Path) -> dict[int, list[str]]:
    """What each process did, in order."""
    found: dict[int, list[str]] = defaultdict(list)
    file = folder / "diary"
    for line in file.read_text().splitlines() if file.exists() else []:
        pid, _, text = line.partition(" ")
        found[int(pid)].append(text)
    return found


def working(run: Run, folder: Path, killed: set[int]) -> list[psutil.Process]:
    """The processes that have begun and were not killed; not the quarantine process."""
    begun, found = diaries(folder).keys() - killed, []
    for each in run.children:
        with suppress(psutil.NoSuchProcess):
            if each.pid in begun and "never" in each.cmdline():
                found.append(each)
    return found


async def test_g9_each_process_sets_up_once_and_takes_down_last_and_a_kill_loses_nothing(
    database: str, tmp_path: Path
) -> None:
    admin = database.replace("postgres:", f"{keys.SUPERUSER}:", 1)
    source = SOURCE.replace("VERSION", "1")
    killed: set[int] = set()
    async with connected(admin) as connection:
        async with supervised(database, tmp_path, "--processes", "2", source=source) as run:
            await until(lambda: settled(connection, *HANDLERS))
            for first in (1, 101, 201):
                await connection.execute(ORDERS, first, first + 99)
                await until(
                    lambda first=first: any(len(each) > first // 10 for each in diaries(tmp_path).values())
                )
                if first < 201:
                    await until(lambda: bool(working(run, tmp_path, killed)))
                    victim = working(run, tmp_path, killed)[0]
                    killed.add(victim.pid)
                    victim.kill()

            async def is_over() -> bool:
                return not await count(connection, "select count(*) from runtime.deliveries")

            await until(is_over, seconds=60)
            # Two, two in place of those that were killed, and the quarantine process.
            await until(lambda: len(diaries(tmp_path)) >= 5, seconds=60)
            run.process.send_signal(signal.SIGTERM)
            assert await run.process.wait() == 0
        emitted = await connection.fetch(
            "select key, value ->> 'number' as number, value -> 'pid' = value -> 'stamped' as is_stamped, "
            "(value ->> 'receipt')::bigint = parent_id as is_its_own "
            "from consciousness_stream where key in ('order.packed', 'order.sent')"
        )
        assert len(emitted) == len({(row["key"], row["number"]) for row in emitted}) == 600
        assert all(row["is_stamped"] and row["is_its_own"] for row in emitted)
        assert not await count(connection, "select count(*) from runtime.dead_letters")
    found = diaries(tmp_path)
    assert killed
    for pid, lines in found.items():
        assert lines[0] == "up 1"
        assert lines.count("up 1") == 1
        assert (lines[-1] == "down 1") == (pid not in killed)


async def test_a_process_whose_agent_cannot_start_ends_and_its_successor_spends_no_attempt(
    database: str, tmp_path: Path
) -> None:
    admin = database.replace("postgres:", f"{keys.SUPERUSER}:", 1)
    (tmp_path / "closed").touch()
    async with connected(admin) as connection:
        async with supervised(database, tmp_path, "--processes", "2", source=SOURCE) as run:
            await until(lambda: run.said("the shop is closed") and run.said("ended with exit code 1"))
            assert run.said("No agent can work here")
            await connection.execute(ORDERS, 1, 10)
            (tmp_path / "closed").unlink()

            async def are_packed() -> bool:
                return (
                    await count(
                        connection, "select count(*) from consciousness_stream where key like 'order.%'"
                    )
                    == 20
                )

            await until(are_packed)
        assert not await count(
            connection, "select count(*) from runtime.runs where attempt > 1 or outcome <> 'done'"
        )


async def test_a_reload_takes_down_what_the_old_files_set_up_and_loses_nothing(
    database: str, tmp_path: Path
) -> None:
    admin = database.replace("postgres:", f"{keys.SUPERUSER}:", 1)
    folder = tmp_path / "agents"
    folder.mkdir()
    file = folder / "shop.py"
    file.write_text(SOURCE.replace("VERSION", "1"))
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RUNTIME_", "SUPABASE_"))
        },
        "DATABASE_URL": database,
    }
    reloading = Reloader([str(folder)], environment, drain_seconds=10, say=lambda text: None)
    async with anyio.create_task_group() as tasks, connected(admin) as connection:
        tasks.start_soon(reloading.run)
        await until(lambda: settled(connection, *HANDLERS))
        await connection.execute(ORDERS, 1, 200)
        await until(lambda: any(len(each) > 10 for each in diaries(folder).values()))
        file.write_text(SOURCE.replace("VERSION", "2"))
        await until(lambda: any("up 2" in each for each in diaries(folder).values()))
        await connection.execute(ORDERS, 201, 210)

        async def are_packed() -> bool:
            return (
                await count(connection, "select count(*) from consciousness_stream where key like 'order.%'")
                == 420
            )

        await until(are_packed)
        reloading.stop()
    first, second = diaries(folder).values()
    assert (first[0], first[-1]) == ("up 1", "down 1")
    assert (second[0], second[-1]) == ("up 2", "down 2")
