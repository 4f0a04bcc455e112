"""A stack that the environment names is one on this machine, and each test finds it empty."""

from typing import Any

import anyio
import pytest

from tests.integration.conftest import connected
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
