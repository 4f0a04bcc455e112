"""Does every committed message reach every agent that listens, over REST and Realtime?"""

from typing import Any

import anyio
import pytest

from runtime import Agent, Context, Message, connect
from runtime.errors import InvalidValue, Refused
from runtime.message import Draft
from tests.integration.conftest import connected, outcomes, running, settings_of, settled, until

pytestmark = pytest.mark.anyio


def collector(name: str, pattern: str, seen: list[Any], **options: Any) -> Agent:
    """An agent that notes the values it gets."""
    agent = Agent(name)

    @agent.on(pattern, **options)
    async def collect(value: Any) -> None:
        seen.append(value)

    return agent


PATHS = [
    pytest.param({}, {"broadcast", "postgres_changes"}, id="both paths"),
    pytest.param({"broadcast": False}, {"postgres_changes"}, id="postgres_changes alone"),
    pytest.param({"postgres_changes": False}, {"broadcast"}, id="broadcast alone"),
    pytest.param({"broadcast": False, "postgres_changes": False}, set(), id="polling"),
]


@pytest.mark.parametrize(("switched", "paths"), PATHS)
async def test_agents_hand_work_to_each_other_by_every_path(
    stack: Any, seen: list[Any], switched: dict[str, bool], paths: set[str]
) -> None:
    agent = Agent("pipeline")

    @agent.on("task.input", emits="task.output")
    async def work(value: int) -> int:
        return value + 1

    @agent.on("task.output")
    def note(message: Message[int], context: Context) -> None:
        seen.append((message.value, message.agent, message.correlation_id))

    settings = settings_of(stack, **switched)
    async with running([agent], settings, live=bool(paths)) as worker, connect(settings) as stream:
        await until(lambda: worker.live_paths == paths)
        async with connected(stack.db_url) as connection:
            await until(lambda: settled(connection, "pipeline.work", "pipeline.note"))
        first = await stream.send("task.input", 1)
        await until(lambda: len(seen) == 1)
        await stream.send("task.input", 2)
        await until(lambda: len(seen) == 2)
        assert seen[0] == (2, "pipeline", str(first.id))
        assert sorted(value for value, _, _ in seen) == [2, 3]
        for path in paths:
            await until(lambda path=path: worker.counts.get(f"wake-ups by {path}", 0) > 0)
        assert worker.state == ("live" if paths else "polling")


async def test_g1_what_was_written_while_no_worker_ran_is_handled(stack: Any, seen: list[Any]) -> None:
    settings = settings_of(stack)
    agents = [collector("late", "task.output", seen)]
    async with running(agents, settings), connected(stack.db_url) as connection:
        await until(lambda: settled(connection, "late.collect"))
    async with connected(stack.db_url) as connection:
        await connection.execute(
            "insert into public.consciousness_stream (key, value, agent) "
            "select 'task.output', to_jsonb(n), 'seed' from generate_series(1, 1000) n"
        )
    async with running(agents, settings):
        await until(lambda: len(seen) >= 1000)
    assert sorted(seen) == list(range(1, 1001))


async def test_two_agents_on_one_key_both_get_each_row_and_a_third_gets_the_history(stack: Any) -> None:
    one: list[Any] = []
    two: list[Any] = []
    three: list[Any] = []
    settings = settings_of(stack)
    first = [collector("one", "task.output", one), collector("two", "task.*", two)]
    async with running(first, settings), connect(settings) as stream:
        async with connected(stack.db_url) as connection:
            await until(lambda: settled(connection, "one.collect", "two.collect"))
        await stream.send_all([Draft("task.output", number) for number in range(50)])
        await until(lambda: len(one) == 50 and len(two) == 50)
        late = [collector("three", "task.output", three, start="earliest")]
        async with running(late, settings):
            await until(lambda: len(three) >= 50)
    assert sorted(one) == sorted(two) == sorted(three) == list(range(50))
    assert await outcomes(stack.admin_url) == {
        ("one.collect", "done"): 50,
        ("two.collect", "done"): 50,
        ("three.collect", "done"): 50,
    }


async def test_a_transaction_of_50_000_rows_is_handled_completely(stack: Any) -> None:
    numbers: set[int] = set()
    doubles: list[int] = []
    agent = Agent("bulk")

    @agent.on("bulk.row")
    async def count(value: int) -> None:
        (doubles.append if value in numbers else numbers.add)(value)

    # One table row more or less costs the same; the direct store only makes the test shorter.
    settings = settings_of(stack, database_url=stack.db_url)
    async with running([agent], settings):
        async with connected(stack.db_url) as connection:
            await until(lambda: settled(connection, "bulk.count"))
            await connection.execute(
                "insert into public.consciousness_stream (key, value) "
                "select 'bulk.row', to_jsonb(n) from generate_series(1, 50000) n"
            )
        await until(lambda: len(numbers) == 50_000, seconds=90)
    assert doubles == []


async def test_a_value_of_5_mb_arrives_whole(stack: Any, seen: list[Any]) -> None:
    settings = settings_of(stack)
    text = "ä" * 2_500_000
    async with running([collector("big", "big.value", seen)], settings), connect(settings) as stream:
        async with connected(stack.db_url) as connection:
            await until(lambda: settled(connection, "big.collect"))
        await stream.send("big.value", text)
        await until(lambda: len(seen) == 1)
    assert seen == [text]


async def test_a_value_no_json_can_hold_is_refused_and_costs_nobody_else_anything(
    stack: Any, seen: list[Any]
) -> None:
    agent = Agent("careless")

    @agent.on("odd.input", emits="odd.output")
    async def echo(value: float) -> float:
        return float("nan") if value == 3 else value

    agents = [agent, collector("reader", "odd.output", seen)]
    settings = settings_of(stack)
    async with running(agents, settings), connect(settings) as stream:
        async with connected(stack.db_url) as connection:
            await until(lambda: settled(connection, "careless.echo", "reader.collect"))
        with pytest.raises(InvalidValue, match=r"NaN|nan"):
            await stream.send("odd.input", float("nan"))
        await stream.send_all([Draft("odd.input", number) for number in range(6)])
        await until(lambda: len(seen) == 5)
    assert sorted(seen) == [0, 1, 2, 4, 5]


async def test_a_bad_key_is_refused_with_what_a_key_looks_like(stack: Any) -> None:
    async with connected(stack.db_url) as connection:
        with pytest.raises(Exception, match="is not a key") as refused:
            await connection.execute("insert into public.consciousness_stream (key) values ('task..output')")
        assert "task.output" in str(refused.value.hint)  # type: ignore[attr-defined]
    async with connect(settings_of(stack)) as stream:
        with pytest.raises((Refused, ValueError), match="key"):
            await stream.send("not a key", 1)


async def test_g11_the_seeds_two_programs_run_unchanged(stack: Any, seen: list[Any]) -> None:
    settings = settings_of(stack)
    received: list[int] = []

    async def poll() -> None:
        async with connected(stack.db_url) as connection:
            while len(received) < 20:
                rows = await connection.fetch(
                    "select id from consciousness_stream where key = $1 and processed = false order by created_at",
                    "seed.other",
                )
                for row in rows:
                    received.append(row["id"])
                    await connection.execute(
                        "update consciousness_stream set processed = true where id = $1", row["id"]
                    )
                await anyio.sleep(0.01)

    async with running([collector("woken", "seed.task", seen)], settings), anyio.create_task_group() as tasks:
        tasks.start_soon(poll)
        async with connected(stack.db_url) as connection:
            await until(lambda: settled(connection, "woken.collect"))
            for number in range(20):
                await connection.execute(
                    "INSERT INTO consciousness_stream (key, value, agent) VALUES ('seed.task', $1, 'psql')",
                    str(number),
                )
                await connection.execute(
                    "INSERT INTO consciousness_stream (key, value, agent) VALUES ('seed.other', $1, 'psql')",
                    str(number),
                )
            await until(lambda: len(seen) == 20 and len(received) == 20)

            async def all_processed() -> bool:
                return not await connection.fetchval(
                    "select count(*) from consciousness_stream where not processed"
                )

            await until(all_processed)
    assert sorted(seen) == list(range(20))
    assert len(set(received)) == 20


async def test_listen_follows_the_stream_and_misses_nothing_since_an_id(stack: Any) -> None:
    settings = settings_of(stack)
    async with connect(settings) as stream:
        first = await stream.send("site.published", 0)
        await stream.send("site.published", 1)
        heard: list[Any] = []

        async def hear() -> None:
            async for message in stream.listen("site.>", since=first.id):
                heard.append(message.value)
                if len(heard) == 20:
                    return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hear)
            await until(lambda: heard == [1])
            for number in range(2, 21):
                await stream.send("site.published", number)
            await until(lambda: len(heard) == 20)
        assert heard == list(range(1, 21))
        latest = await stream.latest("site.published")
        assert latest is not None
        assert latest.value == 20
