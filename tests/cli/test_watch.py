"""`runtime top`, `trace` and `tail --since`: what runs, one message's story, and what came since a time."""

import json
import signal
from typing import Any

import pytest
from rich.console import Console

from runtime.cli.top import picture
from runtime.cli.top_view import TopView
from runtime.cli.trace import trees
from tests.cli.shell import SECONDS, Shell, error_line, usage_error

AGENTS = """
from runtime import Agent, Context, Retry
first, second = Agent("first"), Agent("second")

@first.on("note.found", emits="draft.written")
async def write(text: str, context: Context) -> str:
    return await context.step("shout", text.upper)

@second.on("draft.written", retry=Retry(attempts=1))
async def judge(text: str) -> None:
    raise ValueError("not\\x1b[31m good")
"""


@pytest.fixture
def story(shell: Shell) -> Shell:
    """A shell on a stream where one message caused another, which nobody could handle."""
    (shell.folder / "desk.py").write_text(AGENTS)
    process = shell.start("run", "desk.py", PYTHONUNBUFFERED="1")
    assert process.stderr is not None
    assert process.stdout is not None
    next(line for line in process.stderr if "live" in line)
    shell.run("send", "note.found", '"hello"')
    next(line for line in process.stdout if "second.judge" in line)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)
    return shell


def test_trace_draws_what_caused_what_and_how_each_handler_fared(story: Shell) -> None:
    ended = story.run("trace", "2")
    assert (ended.code, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("#1 note.found")
    assert '"hello"' in lines[0]
    (done,) = [number for number, line in enumerate(lines) if "done first.write" in line]
    assert "step shout" in lines[done + 1]
    assert '"HELLO"' in lines[done + 1]
    (caused,) = [line for line in lines if "#2 draft.written" in line]
    assert caused.startswith(("├── ", "└── "))
    assert '"HELLO"' in caused
    (dead,) = [line for line in lines if "dead second.judge" in line]
    assert "ValueError: not\\x1b[31m good" in dead
    assert "\x1b" not in ended.stdout
    told = json.loads(story.run("trace", "1", "--json").stdout)
    assert [each["id"] for each in told["messages"]] == [1, 2]
    [step] = told["messages"][0]["handled"][0]["steps"]
    assert (step["name"], step["key"], step["occurrence"], step["value"]) == ("shout", "", 1, "HELLO")
    assert "There is no message 99" in error_line(story.run("trace", "99"))
    assert "ID" in usage_error(story.run("trace", "0"))


def test_top_shows_each_look_once_where_nobody_watches(story: Shell) -> None:
    ended = story.run("top", "--count", "1")
    assert ended.code == 0, ended
    assert "1 dead letter\n" in ended.stdout
    assert any(line.startswith("first.write") for line in ended.stdout.splitlines())
    looks = story.run("top", "-n", "2", "-d", "0.2", "--json").stdout.splitlines()
    assert [len(json.loads(look)["subscriptions"]) for look in looks] == [2, 2]


def test_tail_begins_at_a_time(story: Shell) -> None:
    since = json.loads(story.run("read", "draft.written", "--json").stdout)["created_at"]
    process = story.start("tail", "--since", since, "--json", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["id"] == 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    process = story.start("tail", "--since", "10m", "--json", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline())["id"] for _ in range(2)] == [1, 2]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    assert "is no time" in usage_error(story.run("tail", "--since", "yesterday-ish"))


def _message(number: int, parent: int | None, **more: Any) -> dict[str, Any]:
    return {
        "id": number, "key": "a.b", "value": 1, "agent": None, "created_at": "2026-01-01T00:00:00+00:00",
        "parent_id": parent, "handled": [], **more,
    }  # fmt: skip


def test_a_message_whose_cause_was_pruned_is_a_root_of_its_own() -> None:
    roots = trees([_message(5, 1), _message(6, 5), _message(7, 2)], 6)
    assert [len(root.children) for root in roots] == [1, 0]


@pytest.mark.parametrize(("coloured", "environment"), [(True, {}), (False, {"NO_COLOR": "1"})])
def test_colours_are_left_out_where_the_environment_asks(coloured: bool, environment: dict[str, str]) -> None:
    console = Console(force_terminal=True, width=100, _environ={"TERM": "xterm-256color", **environment})
    stats = {
        "workers": [], "dead_letters": 3,
        "subscriptions": [{
            "name": "a.b", "done_last_minute": 6, "failed_last_minute": 2, "waiting": 1, "running": 0, "scheduled": 0,
            "suspended": 0, "undoing": 0, "parked": 0, "dead": 3, "lag_seconds": 90.0, "paused": False, "workers": 1,
            "patterns": ["a"],
        }],
    }  # fmt: skip
    with console.capture() as capture:
        console.print(picture("here", stats, TopView()))
    assert ("\x1b[31m" in capture.get()) is coloured
    assert "a.b" in capture.get()
