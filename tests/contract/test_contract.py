"""Upgrades: a worker of a released version runs against the schema of today."""

from typing import Any

import pytest

from runtime.store import FUNCTIONS
from tests.contract.conversation import Player, Release, differences, releases, this_release
from tests.kernel.driver import connected
from tests.kernel.switch import switch_off

pytestmark = pytest.mark.anyio


async def play(url: str, release: Release) -> list[str]:
    """What a worker of the release would miss today."""
    missed = []
    async with connected(url) as connection:
        player = Player(connection, release)
        for step in release.steps:
            answer = await player.play(step)
            found = differences(step["answer"], answer, loosely=step.get("loose", False))
            missed += [f"{step['name']}: {each}" for each in found]
    return missed


@pytest.mark.parametrize("name", releases())
async def test_a_worker_of_a_released_version_is_served_by_the_schema_of_today(
    name: str, kernel_database: str
) -> None:
    assert await play(kernel_database, Release.load(name)) == []


async def test_every_function_of_the_first_release_is_part_of_its_conversation() -> None:
    release = Release.load("0.1")
    assert {step["call"] for step in release.steps} == set(release.functions)
    used: dict[str, set[str]] = {name: set() for name in release.functions}
    for step in release.steps:
        used[step["call"]] |= set(step["with"])
    assert used == {name: set(types) for name, types in release.functions.items()}


def test_what_this_version_calls_is_in_the_recording_it_is_released_with() -> None:
    if (name := this_release()) in releases():
        called = {function: dict(types) for function, types in FUNCTIONS.items()}
        cure = f"Add steps with what is new to release_{name}.json, and `python -m tests.contract {name}`."
        assert Release.load(name).functions == called, cure


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
    database: str, function: str, text: str, instead: str, complaint: str
) -> None:
    async with connected(database) as connection:
        await switch_off(connection, function, text, instead)
    assert any(complaint in missed for missed in await play(database, Release.load("0.1")))


async def test_an_argument_that_is_gone_is_noticed(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute(
            "drop function public.stream_leave(uuid);"
            "create function public.stream_leave(who uuid) returns json language sql as $$ select '{}'::json $$"
        )
    assert any(missed.startswith("left: ") for missed in await play(database, Release.load("0.1")))


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
