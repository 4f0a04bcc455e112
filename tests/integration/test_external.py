"""A named stack is one on this machine, each test finds it empty, and the suite leaves it whole."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime import Agent
from runtime.local.stack import LocalStack
from tests.integration.conftest import connected, running, settings_of, settled, until
from tests.integration.external import ExternalStack

pytestmark = pytest.mark.anyio

NAMED = {
    "SUPABASE_URL": "http://127.0.0.1:54321",
    "SUPABASE_SERVICE_ROLE_KEY": "a-key",
    "DATABASE_URL": "postgresql://postgres:postgres@127.0.0.1:54322/postgres",
}


def test_all_three_variables_name_a_stack_and_the_others_its_keys() -> None:
    named = ExternalStack.named_by({**NAMED, "ANON_KEY": "another-key"})
    assert named is not None
    assert (named.api_url, named.service_role_key, named.db_url) == tuple(NAMED.values())
    assert named.anon_key == "another-key"
    for missing in NAMED:
        assert ExternalStack.named_by({name: NAMED[name] for name in NAMED if name != missing}) is None


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"SUPABASE_URL": "https://abcdefghijklmnopqrst.supabase.co"},
        {"DATABASE_URL": "postgresql://postgres:secret@db.abcdefghijklmnopqrst.supabase.co:5432/postgres"},
    ],
)
def test_a_project_elsewhere_is_not_emptied(elsewhere: dict[str, str]) -> None:
    with pytest.raises(pytest.UsageError, match=r"supabase\.co, and these tests empty the stream") as caught:
        ExternalStack.named_by({**NAMED, **elsewhere})
    assert "secret" not in str(caught.value)


async def test_nothing_of_an_earlier_test_is_left(stack: Any) -> None:
    named = ExternalStack(stack.api_url, stack.service_role_key, stack.db_url)
    async with connected(stack.db_url) as connection:
        await connection.fetchval(
            'select stream_subscribe(\'{"id": "00000000-0000-0000-0000-000000000001"}\', '
            '\'[{"name": "a.one", "agent": "a", "patterns": ["task.ask"]}]\')'
        )
        await connection.execute("insert into consciousness_stream (key) values ('task.ask')")
        assert await connection.fetchval("select count(*) from runtime.deliveries") == 1
        await anyio.to_thread.run_sync(named.empty)
        for table in (
            "consciousness_stream",
            "runtime.deliveries",
            "runtime.subscriptions",
            "runtime.workers",
        ):
            assert await connection.fetchval(f"select count(*) from {table}") == 0
        assert await connection.fetchval("select count(*) from runtime.policy") == 1
        assert await connection.fetchval("select count(*) from runtime.routing") == 1


# One over each way a stack is used, and one that hurries the kernel on.
SOME = (
    "tests/integration/test_external.py::test_nothing_of_an_earlier_test_is_left",
    "tests/integration/test_faults.py::test_g1_g3_every_message_is_done_once_in_spite_of[rows dropped]",
    "tests/integration/test_delivery.py::test_agents_hand_work_to_each_other_by_every_path[both paths]",
    "tests/integration/test_webhooks_out.py::test_while_a_target_is_down_messages_wait_without_spending_attempts",
)


@pytest.mark.own_stack
async def test_t1_the_suite_runs_twice_against_a_stack_of_somebody_else_and_leaves_it_whole() -> None:
    with LocalStack.temporary() as somebodys:
        await anyio.to_thread.run_sync(somebodys.start)
        environment = {
            **os.environ,
            "SUPABASE_URL": somebodys.api_url,
            "SUPABASE_SERVICE_ROLE_KEY": somebodys.service_role_key,
            "DATABASE_URL": somebodys.db_url,
        }
        rules = "select to_jsonb(p)::text from runtime.policy p"
        async with connected(somebodys.db_url) as connection:
            before = await connection.fetchval(rules)
            for _ in range(2):
                await anyio.to_thread.run_sync(run_some, environment)
            assert await connection.fetchval(rules) == before
            assert await connection.fetchval("select count(*) from runtime.routing") == 1
            await wakes_an_agent(somebodys, connection)


def run_some(environment: dict[str, str]) -> None:
    """Run some of this suite against the stack that the environment names."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        *SOME,
    ]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


async def wakes_an_agent(stack: LocalStack, connection: Any) -> None:
    """A plain insert reaches an agent, as it did before."""
    seen: list[int] = []
    agent = Agent("whole")

    @agent.on("whole.task")
    async def note(value: int) -> None:
        seen.append(value)

    async with running([agent], settings_of(stack)):
        await until(lambda: settled(connection, "whole.note"))
        await connection.execute("insert into consciousness_stream (key, value) values ('whole.task', '7')")
        await until(lambda: seen == [7])
