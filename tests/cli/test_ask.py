"""`runtime ask`: what is printed, and the exit code where nothing good comes."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from runtime import Agent, Reject
from runtime.settings import Settings
from runtime.worker.worker import Worker
from tests.cli.shell import Shell, error_line, usage_error

shop = Agent("shop")


@shop.on("price.wanted")
async def price(item: str) -> dict[str, Any]:
    """Know the price of pens."""
    if item != "pen":
        raise Reject("no price")
    return {"cents": 5}


@shop.on("price.wanted")
async def guess(item: str) -> str:
    """Know nothing."""
    if item == "nothing":
        raise Reject("no idea")
    return f"a {item}"


@pytest.fixture
def shop_is_open(stack: Any) -> Iterator[None]:
    """A worker in a thread of its own, subscribed."""
    settings = Settings.load(supabase_url=None, supabase_key=None, database_url=stack.db_url)
    worker = Worker([shop], settings)
    thread = threading.Thread(target=anyio.run, args=[worker.run])
    thread.start()
    while worker.state == "starting" or not worker.counts.get("exchanges"):
        thread.join(0.01)
    yield
    worker.stop()
    thread.join()


@pytest.mark.usefixtures("shop_is_open")
def test_an_answer_is_printed_and_so_are_those_of_everybody(shell: Shell) -> None:
    one = shell.run("ask", "price.wanted", "pen", "--json")
    assert (one.code, json.loads(one.stdout)["value"]) in [(0, {"cents": 5}), (0, "a pen")]
    ink = shell.run("ask", "price.wanted", "ink")
    assert (ink.code, ink.stdout, ink.stderr) == (0, "a ink\n", "")
    every = shell.run("ask", "price.wanted", "ink", "--all", "--json")
    assert every.code == 0
    assert sorted(
        (each["handler"], each["value"], each["error"]) for each in map(json.loads, every.stdout.splitlines())
    ) == [
        ("shop.guess", "a ink", None),
        ("shop.price", None, "Reject: no price"),
    ]
    lines = shell.run("ask", "price.wanted", "nothing", "--all")
    assert lines.code == 1
    assert sorted(lines.stdout.split("\n")[:2]) == [
        "shop.guess            failed: Reject: no idea",
        "shop.price            failed: Reject: no price",
    ]
    failed = error_line(shell.run("ask", "price.wanted", "nothing"))
    assert "could not answer request" in failed


def test_what_cannot_be_answered_is_an_error_with_the_cure(shell: Shell) -> None:
    assert "no handler listens to that key" in error_line(shell.run("ask", "prise.wanted", "pen"))
    assert "--all" in usage_error(shell.run("ask", "prise.wanted", "pen", "--first", "2"))
    assert "looks like JSON and is none" in usage_error(shell.run("ask", "prise.wanted", "[1,"))
    assert "task.output" in error_line(shell.run("ask", "prise wanted"))
