"""What somebody else wrote, printed: no terminal obeys it, and no line of it passes itself off as another."""

import json
import logging
import re
from typing import IO, Any

import anyio
import asyncpg
import pytest
from rich.text import Text

from runtime.cli.output import Terminal, print_json, start_logs
from runtime.encoding.printable import printable
from tests.cli.shell import Shell

# Clears the screen, sets the title, moves up, C1's CSI, turns the direction round, hides, begins lines anew.
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07\x1b[1A\x9b31m\u202egnp\u2066\u200b\ufeff\u2028\u2029\x85\x0b\x0c\x7f\x08\r\n"
    "00:00:00  info     FORGED"
)
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
AGENT = """
from runtime import Agent, Message

agent = Agent("hostile")


@agent.on("hostile.raised")
async def work(message: Message) -> None:
    raise ValueError(message.value)
"""


def harmless(text: str) -> None:
    """Nothing in it is obeyed, and no line of it begins as a line of a log or a list would."""
    assert OBEYED.search(text) is None, ascii(text)
    for line in text.splitlines():
        assert not line.startswith(("00:00:00", "FORGED")), ascii(text)


async def _prepare(url: str) -> tuple[int, int]:
    connection = await asyncpg.connect(url)
    try:
        value = json.dumps({"text": HOSTILE, "[red]": "[/nothing] :warning: [link=http://evil]"})
        message: int = await connection.fetchval(
            "insert into consciousness_stream (key, value, agent) values ('hostile.said', $1, $2) returning id",
            value, HOSTILE[:60],
        )  # fmt: skip
        subscription = await connection.fetchval(
            "insert into runtime.subscriptions (name, agent, patterns, marks_processed, settled, declared_at) "
            "values ($1, 'hostile', array['hostile.never'], true, true, now()) returning id",
            f"hostile.{HOSTILE}",
        )
        letter: int = await connection.fetchval(
            "insert into runtime.dead_letters (message_id, subscription, subscription_name, key, message, reason, "
            "error, traceback, attempts) values ($1, $2, $3, 'hostile.said', $4, $5, $5, $5, $6) returning id",
            message, subscription, f"hostile.{HOSTILE}", json.dumps({"value": HOSTILE, "agent": HOSTILE}), HOSTILE,
            json.dumps([{"attempt": 1, "outcome": HOSTILE, "worker": HOSTILE, "seconds": 1.0, "ended_at": HOSTILE,
                         "error": HOSTILE, "traceback": HOSTILE}]),
        )  # fmt: skip
        await connection.execute(
            "insert into runtime.workers (id, name, announce) values (gen_random_uuid(), $1, array[$1])",
            HOSTILE,
        )
        await connection.execute(
            "insert into runtime.runs (message_id, subscription, ended_at, attempt, outcome, error) "
            "values ($1, $2, now(), 1, 'failed', $3)",
            message, subscription, HOSTILE,
        )  # fmt: skip
        return message, letter
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "commands",
    [
        ["read >", "read > --json", "trace {message}", "trace {message} --json", "schedules", "webhooks list"],
        ["dead list", "dead list --json", "dead show {letter}", "dead show {letter} --json", "dead redrive --all"],
        ["status", "status --json", "top -n 1", "top -n 1 --json", "subscriptions", "subscriptions --json"],
        ["pause {hostile}", "send {hostile}", "tail -n 5"],
    ],
)  # fmt: skip
def test_s7_no_command_prints_what_a_terminal_obeys(shell: Shell, stack: Any, commands: list[str]) -> None:
    message, letter = anyio.run(_prepare, stack.admin_url)
    named = {"{message}": str(message), "{letter}": str(letter), "{hostile}": HOSTILE}
    for command in commands:
        arguments = [named.get(each, each) for each in command.split(" ")]
        if command.startswith("tail"):
            process = shell.start(*arguments)
            assert process.stdout is not None
            harmless(process.stdout.readline())
            continue
        ended = shell.run(*arguments)
        assert "Traceback" not in ended.stderr, ended
        harmless(ended.stdout + "\n" + ended.stderr)
        if "--json" in arguments:
            assert [json.loads(line) for line in ended.stdout.splitlines()]


def _read_until(stream: IO[str], words: str) -> list[str]:
    """The lines up to the one with these words."""
    lines: list[str] = []
    while not lines or words not in lines[-1]:
        lines.append(stream.readline())
        assert lines[-1], lines
    return lines


def test_s7_a_log_has_one_line_for_one_record(shell: Shell, stack: Any) -> None:
    (shell.folder / "hostile.py").write_text(AGENT)
    process = shell.start("run", "hostile.py", RUNTIME_LOG_FORMAT="lines")
    assert process.stderr is not None
    lines = _read_until(process.stderr, "live: woken by")
    sent = shell.run("send", "hostile.raised", json.dumps(HOSTILE))
    assert sent.code == 0, sent
    lines += _read_until(process.stderr, "failed on message")
    (line,) = [line for line in lines if "failed on message" in line]
    assert "FORGED" in line
    for each in lines:
        harmless(each)


def test_s7_neither_does_a_record_of_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    start_logs("info", as_json=False)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("runtime.x").exception("It failed: %s", HOSTILE)
    said = capfd.readouterr().err
    harmless(said)
    assert "Traceback" in said


@pytest.mark.parametrize("character", sorted(set(HOSTILE) - set("[]0123456789;:JAmownedg FORGEDinfop")))
def test_s7_a_terminal_is_told_nothing(character: str, capfd: pytest.CaptureFixture[str]) -> None:
    Terminal().print(Text(f"a{character}b"))
    Terminal().print(f"a{character}b [red]c[/nothing] :warning:")
    print_json({f"a{character}b": f"a{character}b\ud800"})
    said = capfd.readouterr().out
    assert OBEYED.search(said) is None
    assert "[red]c[/nothing] :warning:" in said
    assert json.loads(said.splitlines()[-1]) == {f"a{character}b": f"a{character}b\ud800"}
    assert printable(f"a{character}b").isprintable()
    assert printable("ab" * 100, 10) == "ababababa…"
    assert printable("ö€😀 ok") == "ö€😀 ok"
