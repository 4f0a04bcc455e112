"""`runtime run --once`: one message is handled here, and the stream stays as it was."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import Ended, Shell, error_line, usage_error

AGENTS = """
from contextlib import asynccontextmanager
from typing import Any
from runtime import Agent, Context

agent = Agent("bot")

@agent.lifespan
@asynccontextmanager
async def opened():
    print("opened")
    yield {"rate": 2}
    print("closed")

@agent.on("question.*", emits="answer")
async def reply(value: dict[str, Any], context: Context) -> str:
    context.broadcast("progress", "half")
    price = await context.ask("price.of", value["id"])
    first = await context.get(context.message.id)
    context.emit("audit", {"price": price, "of": first.key}, delay=5)
    return f"{price['cents'] * value['n'] * context.state['rate']} cents"

@agent.on("count", batch=10)
async def count(values: list[int], context: Context) -> None:
    context.emit("counted", len(values), cause=context.messages[0])

@agent.on("broken")
def broken(value: dict[str, Any]) -> None:
    deeper(value)

@agent.on("broken")
async def broken_too(value: Any) -> None:
    ...

def deeper(value):
    return value["nope"]
"""


@pytest.fixture
def agents(shell: Shell) -> Shell:
    (shell.folder / "bot.py").write_text(AGENTS)
    return shell


def once(shell: Shell, *options: str, given: str = "") -> Ended:
    return shell.run("run", "bot.py", "--once", *options, given=given)


def rows(shell: Shell) -> list[Any]:
    return [json.loads(line) for line in shell.run("read", ">", "--json").stdout.splitlines()]


def test_it_prints_what_a_handler_would_do_and_does_none_of_it(agents: Shell) -> None:
    agents.run("send", "question.price", '{"id": 3, "n": 2}')
    agents.run("send", "count", "7")
    before = rows(agents)
    number = str(before[0]["id"])
    # No answer is in the stream, and none is given.
    ended = once(agents, number)
    assert ended.code == 1
    assert "--answer 'price.of={…}'" in ended.stderr
    ended = once(agents, number, "--answer", 'price.of={"cents": 5}')
    assert (ended.code, ended.stdout.splitlines()) == (
        0,
        [
            "opened",
            "closed",
            'would broadcast  progress  "half"',
            "would ask        price.of  3",
            'would emit       audit  {"price":{"cents":5},"of":"question.price"}  delay=5',
            'would emit       answer  "20 cents"',
            ended.stdout.splitlines()[-1],
        ],
    )
    ended = once(agents, str(before[1]["id"]), "--json")
    found = json.loads(ended.stdout.splitlines()[-1])
    assert (found["handler"], found["outcome"], found["error"]) == ("bot.count", "done", None)
    assert [(each["kind"], each["key"], each["value"]) for each in found["effects"]] == [
        ("emit", "counted", 1)
    ]
    assert rows(agents) == before
    assert json.loads(agents.run("status", "--json").stdout)["workers"] == []


def test_it_shows_where_a_handler_fails_and_stops_there_if_asked(agents: Shell) -> None:
    agents.run("send", "broken", '{"some": "thing"}')
    number = str(rows(agents)[0]["id"])
    assert "bot.broken, bot.broken_too. Choose one: --handler" in error_line(once(agents, number))
    ended = once(agents, number, "--handler", "broken")
    assert ended.code == 1
    file = (Path(agents.folder) / "bot.py").resolve()
    line = AGENTS.splitlines().index('    return value["nope"]') + 1
    assert f'File "{file}", line {line}, in deeper' in ended.stderr
    assert "frames of the runtime)" in ended.stderr
    assert "runtime/worker" not in ended.stderr
    assert "KeyError: 'nope'; a worker would try again" in ended.stderr
    ended = once(agents, number, "--handler", "bot.broken", "--pdb", given="p value\nu\nl\nq\n")
    assert "(Pdb) {'some': 'thing'}" in ended.stdout
    assert "deeper(value)" in ended.stdout
    assert ended.stderr.count("in deeper") == 1


def test_what_makes_no_sense_is_told(agents: Shell) -> None:
    assert "There is no message 999" in error_line(once(agents, "999"))
    assert "belong to --once" in usage_error(agents.run("run", "bot.py", "--pdb"))
    assert "is not KEY=JSON" in usage_error(once(agents, "1", "--answer", "price"))
