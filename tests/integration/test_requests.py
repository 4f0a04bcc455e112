"""Does each request get its answer, once per handler, while the processes that answer and ask are killed?"""

from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime.client.stream import Stream, connect
from runtime.errors import AskFailed, AskTimeout
from tests.integration.conftest import connected, settings_of, settled, until
from tests.integration.test_supervision import Run, supervised

pytestmark = pytest.mark.anyio

SOURCE = """
import anyio
from runtime import Agent, Context, Message, Retry

SOON = Retry(attempts=3, first_seconds=0.05, cap_seconds=0.1)
math, desk, other = Agent("math"), Agent("desk"), Agent("other")

@math.on("sum.wanted", retry=SOON)
async def add(numbers: list[int], context: Context) -> int:
    if sum(numbers) == 13 and context.attempt == 1:
        raise ConnectionError("a bad day")
    if sum(numbers) == 666:
        raise ValueError("not that")
    return sum(numbers)

@math.on("nap.wanted")
async def nap(message: Message[float], context: Context) -> int:
    # The first attempt is the one whose process is killed.
    await anyio.sleep(message.value if context.attempt == 1 else 0)
    return context.attempt

@other.on("sum.wanted")
def also(numbers: list[int]) -> str:
    return str(sum(numbers))

@desk.on("bill.wanted", concurrency=20)
async def bill(numbers: list[int], context: Context) -> int:
    return 2 * await context.ask("double.wanted", numbers)

@desk.on("double.wanted")
def double(numbers: list[int], context: Context) -> int:
    return 2 * int(context.ask_blocking("half.wanted", numbers))

@other.on("half.wanted")
async def half(numbers: list[int]) -> int:
    return sum(numbers)
"""
SUBSCRIPTIONS = ("math.add", "math.nap", "other.also", "desk.bill", "desk.double", "other.half")


async def is_ready(admin: str) -> bool:
    """Whether everybody listens."""
    async with connected(admin) as connection:
        return await settled(connection, *SUBSCRIPTIONS)


async def kill_whoever_has(connection: Any, run: Run, request: int) -> None:
    """Kill the process that holds a delivery of this request, with SIGKILL, once one does."""
    query = (
        "select (w.details ->> 'pid')::int from runtime.deliveries d join runtime.pumps p on p.number = d.holder "
        "join runtime.workers w on w.id = p.worker where d.message_id = $1 and d.lease is not null"
    )

    async def holder() -> bool:
        return await connection.fetchval(query, request) is not None

    await until(holder)
    pid = await connection.fetchval(query, request)
    next(child for child in run.children if child.pid == pid).kill()


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_requests_are_answered_by_processes_that_are_killed_and_replaced(
    store: str, stack: Any, tmp_path: Path
) -> None:
    admin = stack.admin_url
    environment = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    url = stack.db_url if store == "direct" else ""
    settings = settings_of(stack, database_url=stack.db_url if store == "direct" else None)
    async with (
        supervised(url, tmp_path, "--processes", "2", source=SOURCE, **environment) as run,
        connect(settings) as stream,
        connected(admin) as connection,
    ):
        await until(lambda: is_ready(admin))
        await answer_in_good_times(stream)
        await answer_after_a_kill(stream, connection, run)
        await answer_many_under_kills(stream, run)
        counts = await connection.fetch(
            "select parent_id, headers ->> 'handler' as handler from consciousness_stream where key like 'answer.%'"
        )
    assert max(Counter((row["parent_id"], row["handler"]) for row in counts).values()) == 1


async def answer_in_good_times(stream: Stream) -> None:
    """An answer, one after a retry, one of a chain of askers, several, a failure, and one that comes late."""
    assert await stream.ask("sum.wanted", [1, 2]) in (3, "3")
    assert await stream.ask("bill.wanted", [1, 2]) == 12
    both = await stream.ask_all("sum.wanted", [6, 7])
    assert {answer.handler: answer.value for answer in both} == {"math.add": 13, "other.also": "13"}
    failed = await stream.ask_all("sum.wanted", [666])
    (error,) = (answer.error for answer in failed if answer.error is not None)
    assert isinstance(error, AskFailed)
    assert (error.handler, error.error) == ("math.add", "ValueError: not that")
    with pytest.raises(AskTimeout) as late:
        await stream.ask("nap.wanted", 1.0, timeout=0.5)

    async def is_kept() -> bool:
        return [each.parent_id for each in await stream.read(late.value.reply_to, limit=1)] == [
            late.value.request
        ]

    await until(is_kept)


async def answer_after_a_kill(stream: Stream, connection: Any, run: Run) -> None:
    """Whoever answers dies in the middle of it: another answers."""
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await stream.ask("nap.wanted", 60.0, dedup_key="killed", timeout=40))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)

        async def is_asked() -> bool:
            return bool(
                await connection.fetchval("select message_id from runtime.dedup where dedup_key = 'killed'")
            )

        await until(is_asked)
        request = await connection.fetchval("select message_id from runtime.dedup where dedup_key = 'killed'")
        await kill_whoever_has(connection, run, request)
    assert answers == [2]


async def answer_many_under_kills(stream: Stream, run: Run) -> None:
    """Handlers that ask handlers, while processes that ask and processes that answer are killed."""
    answers: dict[int, int] = {}

    async def ask(number: int) -> None:
        answers[number] = await stream.ask("bill.wanted", [number], timeout=40)

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(ask, number)
        await until(lambda: len(answers) >= 3)
        for child in run.children:
            child.kill()
    assert answers == {number: 4 * number for number in range(30)}
