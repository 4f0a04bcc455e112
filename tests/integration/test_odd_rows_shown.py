"""Every page, event and command shows rows that Python cannot hold, or whose times lie beyond its years."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from runtime import Agent, Retry, connect
from runtime.client.dead_letters import DeadLetterFilter
from runtime.dashboard.server import serving
from tests.cli.shell import Shell
from tests.integration.conftest import connected, running, settings_of, settled, until
from tests.integration.test_odd_rows import INSERT, READABLE, UNREADABLE
from tests.preforked import Preforked

# Each command is a process of its own.
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

TIMES = (
    "'infinity'",
    "'-infinity'",
    "'20000-01-01'",
    "'9999-12-31 23:59:59'",
    "'0044-03-15 BC'",
    "'0001-01-01'",
)
UNLIMITED = (
    "alter table consciousness_stream drop constraint created_at_is_finite_and_not_to_come, "
    "drop constraint deliver_at_is_within_a_hundred_years"
)


async def written(stack: Any) -> list[int]:
    """Rows of every kind, one after the other."""
    async with connected(stack.admin_url) as db:
        await db.execute(UNLIMITED)
        numbers = [
            await db.fetchval(INSERT.format(sql)) for sql in (*UNREADABLE.values(), *READABLE.values())
        ]
        for at in TIMES:
            numbers.append(
                await db.fetchval(
                    "insert into consciousness_stream (key, value, created_at, expires_at, parent_id) "
                    f"values ('odd.time', '1', {at}, {at}, $1) returning id",
                    numbers[0],
                )
            )
        return numbers


async def died(stack: Any) -> list[dict[str, Any]]:
    """Dead letters of all of them, which a handler that refuses everything has made."""
    agent = Agent("none")

    @agent.on("odd.>", start="earliest", retry=Retry(attempts=1))
    async def take(value: int) -> None:
        raise TypeError("none of these")

    settings = settings_of(stack)
    async with connected(stack.admin_url) as db, connect(settings) as stream, running([agent], settings):
        await until(lambda: settled(db, "none.take"))
        letters: list[dict[str, Any]] = []

        async def have_died() -> bool:
            letters[:] = await stream.operations.dead_letters(DeadLetterFilter(), details=True)
            return len(letters) >= len(UNREADABLE) + len(READABLE) - 1

        await until(have_died, seconds=60)
    return letters


@pytest.mark.parametrize("store", ["direct", "rest"])
async def test_r1_the_dashboard_shows_every_row(store: str, stack: Any) -> None:
    numbers = await written(stack)
    letters = await died(stack)
    settings = settings_of(stack, database_url=stack.db_url if store == "direct" else None)
    async with serving(settings) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        for path in (
            "/", "/rows", "/first", "/overview", "/agents", "/agents/table", "/map", "/map/drawing",
            "/dead", "/dead/groups", "/write",
            *(f"/message/{number}" for number in numbers), *(f"/message/{number}/story" for number in numbers),
            *(f"/dead/{letter['id']}" for letter in letters),
        ):  # fmt: skip
            answer = await client.get(path)
            assert answer.status_code == 200, (path, answer.text[:500])
        assert (
            "&lt;unreadable: a number of 131,072 digits&gt;"
            in (await client.get(f"/message/{numbers[0]}")).text
        )
        watched = ",".join(map(str, numbers))
        with anyio.fail_after(60):
            async with client.stream("GET", f"/events?after=0&watch={watched}") as events:
                seen = ""
                async for text in events.aiter_text():
                    seen += text
                    if "event: rows" in seen and "event: changed" in seen:
                        break


async def test_r1_every_command_shows_every_row(stack: Any, tmp_path: Path, preforked: Preforked) -> None:
    numbers = await written(stack)
    letters = await died(stack)
    named = {
        "SUPABASE_URL": stack.api_url,
        "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
        "TZ": "Asia/Tokyo",
    }
    with closing(Shell(tmp_path, named, preforked=preforked)) as shell:
        commands = [
            ["read", "odd.>"], ["read", "odd.>", "--latest"], ["trace", str(numbers[0])], ["status"], ["dead", "list"],
            *(["dead", "show", str(letter["id"])] for letter in letters[-4:]),
        ]  # fmt: skip
        for command in commands:
            for form in ([], ["--json"]):
                ended = await anyio.to_thread.run_sync(shell.run, *command, *form)
                assert (ended.code, ended.stderr) == (0, ""), (command, ended.stderr[-2000:])
                if form:
                    for line in ended.stdout.rstrip("\n").split("\n"):
                        json.loads(line)
        ended = await anyio.to_thread.run_sync(shell.run, "read", "odd.row", "--json")
        rows = [json.loads(line) for line in ended.stdout.rstrip("\n").split("\n")]
        assert rows[0]["value"] == "<unreadable: a number of 131,072 digits>"
        process = shell.start("tail", "odd.>", "-n", "100", "--json", PYTHONUNBUFFERED="1")
        assert process.stdout is not None
        shown = [json.loads(await anyio.to_thread.run_sync(process.stdout.readline))["id"] for _ in numbers]
        assert shown == numbers
        process.terminate()
        process.wait(60)


def test_r1_a_deep_value_is_folded_no_further_than_a_template_can() -> None:
    # In a process of its own: the tests' own stack is deep already.
    code = """
from runtime.dashboard.filters import is_tree, pretty, preview
from runtime.encoding.json import decode
deep = decode("[" * 5000 + "]" * 5000)
print(is_tree([[1]]), is_tree(deep), len(pretty(deep)) > 0, len(preview(deep)) > 0)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "True False True True\n"
