"""Upgrades: a worker of a released version runs against the schema of today."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime.local.test_cluster import Cluster
from tests.contract import conversation
from tests.contract.__main__ import record
from tests.contract.conversation import Player, Release, differences, releases, this_release
from tests.kernel.driver import connected
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def today(cluster: Cluster) -> Release:
    """The conversation of today, recorded against a database of its own."""
    release = Release.of_today()
    name = cluster.make_database()
    anyio.run(record, cluster.url(name), release)
    cluster.drop_database(name)
    return release


async def play(url: str, release: Release) -> list[str]:
    """What a worker of the release would miss today."""
    async with connected(url) as connection:
        return await Player(connection, release).missed()


async def test_a_worker_of_today_is_served_by_every_postgres(today: Release, kernel_database: str) -> None:
    assert await play(kernel_database, today) == []


async def test_a_worker_of_a_released_version_is_served_by_the_schema_of_today(kernel_database: str) -> None:
    for name in releases():
        assert await play(kernel_database, Release.load(name)) == [], name


def test_every_function_and_argument_is_part_of_the_conversation(today: Release) -> None:
    used: dict[str, set[str]] = {step["call"]: set() for step in today.steps}
    for step in today.steps:
        used[step["call"]] |= set(step["with"])
    assert used == {name: set(types) for name, types in today.functions.items()}


def test_a_recorded_conversation_is_read_as_it_was_written(
    today: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "FOLDER", tmp_path)
    today.save()
    assert releases() == [today.name]
    assert Release.load(today.name) == today


def test_what_this_version_calls_is_in_the_recording_it_is_released_with() -> None:
    if (name := this_release()) in releases():
        cure = "Add steps with what is new to conversation.json, and `python -m tests.contract`."
        assert Release.load(name).functions == Release.of_today().functions, cure


@pytest.mark.parametrize(
    ("function", "text", "instead", "complaint"),
    [
        pytest.param(
            "public.stream_exchange", "'next_due', case", "'due_in', case", "next_due is missing", id="a field"
        ),
        pytest.param(
            "public.stream_exchange", "'repeated', true", "'repeated', 'yes'", "repeated is str", id="a type"
        ),
        pytest.param(
            "public.stream_pause", "'paused', true", "'paused', false", "paused is False", id="a meaning"
        ),
        pytest.param(
            "runtime.describe", "t.attempts, t.crashes", "t.crashes, t.attempts", "taken.0.1 is 0", id="a row's order"
        ),
    ],
)  # fmt: skip
async def test_what_a_released_worker_would_miss_is_noticed(
    today: Release, database: str, function: str, text: str, instead: str, complaint: str
) -> None:
    async with connected(database) as connection:
        await switch_off(connection, function, text, instead)
    assert any(complaint in missed for missed in await play(database, today))


async def test_an_argument_that_is_gone_is_noticed(today: Release, database: str) -> None:
    async with connected(database) as connection:
        await connection.execute(
            "drop function public.stream_leave(uuid);"
            "create function public.stream_leave(who uuid) returns json language sql as $$ select '{}'::json $$"
        )
    assert any(missed.startswith("left: ") for missed in await play(database, today))


@pytest.mark.parametrize(
    ("old", "new", "missed"),
    [
        ({"a": 1}, {"a": 1.0, "b": 1}, []),
        ({"a": 1.5}, {"a": 2.5}, []),
        ({"a": 1}, {"a": 2}, ["answer.a is 2 and was 1"]),
        ({"a": "failed"}, {"a": "died"}, ["answer.a is 'died' and was 'failed'"]),
        ({"a": "2026-11-24T10:00:21.8+00:00"}, {"a": "2027-01-01T00:00:00+00:00"}, []),
        ({"at": "11111111-1111-4111-8111-111111111111"}, {"at": "21111111-1111-4111-8111-111111111111"}, []),
        ({"a": None}, {"a": "anything"}, []),
        ({"a": 1}, {"a": "1"}, ["answer.a is str and was int"]),
        ({"a": True}, {"a": False}, ["answer.a is False and was True"]),
        ({"12345": 1}, {"54321": 1}, []),
        ([[1, "x"]], [[1, "x", 3]], []),
        ([], [[1, "x"]], ["answer has 1 parts and had 0"]),
        ([1, 2], [1], ["answer has 1 parts and had 2"]),
    ],
)
async def test_more_than_was_known_does_no_harm_and_less_does(old: Any, new: Any, missed: list[str]) -> None:
    assert differences(old, new) == missed
