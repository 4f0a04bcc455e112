"""`runtime read`, `tail` and `status`: what is there, what comes, and who waits."""

import json
import os
import signal
import subprocess
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from runtime import connect
from runtime.settings import Settings
from tests.cli.shell import SECONDS, Shell, error_line, usage_error


def test_read_prints_what_is_there_for_people_and_for_machines(shell: Shell) -> None:
    for number in range(3):
        shell.run("send", f"task.n{number}", json.dumps({"n": number}), "--agent", "me")
    ended = shell.run("read", "task.*")
    assert (ended.code, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[0].split()[1:] == ["#1", "task.n0", "me", '{"n":0}']
    assert len(lines) == 3
    rows = [json.loads(line) for line in shell.run("read", ">", "-n", "2", "--json").stdout.splitlines()]
    assert [(row["id"], row["key"], row["value"], row["agent"]) for row in rows] == [
        (2, "task.n1", {"n": 1}, "me"), (3, "task.n2", {"n": 2}, "me"),
    ]  # fmt: skip
    assert [
        json.loads(line)["id"] for line in shell.run("read", ">", "--latest", "--json").stdout.splitlines()
    ]

    family = shell.run("read", "--correlation-id", "1", "--since", "1h", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in family] == [1]
    ended = shell.run("read", "--correlation-id", "1", "--until", "1h")
    assert ended.stderr == "There is no message under > with the correlation id 1.\n"


def test_read_of_nothing_says_so_and_machines_get_nothing(shell: Shell) -> None:
    ended = shell.run("read", "nothing.here")
    assert (ended.code, ended.stdout, ended.stderr) == (0, "", "There is no message under nothing.here.\n")
    assert shell.run("read", "nothing.here", "--json").stderr == ""


def test_a_bad_pattern_and_a_senseless_range_are_refused(nowhere: Shell) -> None:
    assert "task.>" in error_line(nowhere.run("read", "task.>.output"))
    assert "task.>" in error_line(nowhere.run("tail", "*task"))
    assert "range of ids" in usage_error(nowhere.run("read", "a", "--latest", "--after", "1"))
    assert "'--limit'" in usage_error(nowhere.run("read", "a", "-n", "0"))


def test_what_is_in_a_message_cannot_command_the_terminal(shell: Shell) -> None:
    shell.run("send", "a", json.dumps("\x1b[31mred\x07"), "--agent", "\x1b[2Jevil")
    assert "\x1b" not in shell.run("read", "a").stdout
    assert "\\x1b[2Jevil" in shell.run("read", "a").stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_tail_prints_the_last_ones_and_those_that_come_until_it_is_ended(
    shell: Shell, number: int, code: int
) -> None:
    shell.run("send", "a", "1")
    process = shell.start("tail", "--json", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["value"] == 1
    shell.run("send", "a", "2")
    assert json.loads(process.stdout.readline())["value"] == 2
    process.send_signal(number)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == code
    assert "Traceback" not in said


def test_tail_into_a_pipe_that_closes_ends_without_a_traceback(shell: Shell) -> None:
    for number in range(3):
        shell.run("send", "a", str(number))
    process = shell.start("tail", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    shell.run("send", "a", "last")
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(SECONDS) == 0
    assert "Traceback" not in said


def test_tail_prints_broadcasts_beside_messages_when_asked(shell: Shell, stack: Any) -> None:
    process = shell.start("tail", "news.>", "--broadcasts", "--json", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    lines = process.stdout

    async def write() -> None:
        settings = Settings.load(
            supabase_url=stack.api_url, supabase_key=stack.service_role_key, database_url=None
        )
        async with connect(settings) as stream, anyio.create_task_group() as tasks:

            async def broadcast_on() -> None:
                while True:
                    stream.broadcast("news.token", "word")
                    await anyio.sleep(0.1)

            tasks.start_soon(broadcast_on)
            first = json.loads(await anyio.to_thread.run_sync(lines.readline))
            assert (first["key"], first["value"]) == ("news.token", "word")
            assert "id" not in first
            assert first["number"] >= 1
            await stream.send("news.flash", "stored")
            found = first
            while found["key"] != "news.flash":
                found = json.loads(await anyio.to_thread.run_sync(lines.readline))
            assert found["id"] == 1
            tasks.cancel_scope.cancel()

    with anyio.from_thread.start_blocking_portal() as portal:
        portal.call(write)


def test_status_tells_what_is_there_and_what_to_do(shell: Shell) -> None:
    ended = shell.run("status")
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"{shell.environment['SUPABASE_URL']}: no messages\n")
    assert "No agent has subscribed yet: runtime run PATH" in ended.stdout
    found = json.loads(shell.run("status", "--json").stdout)
    assert found["subscriptions"] == []
    assert found["place"] == shell.environment["SUPABASE_URL"]
    shell.run("send", "a", "1")
    # Exactly, though no vacuum has counted it yet.
    assert ": 1 message, the last is #1" in shell.run("status").stdout


def test_colours_are_for_terminals_that_want_them(shell: Shell) -> None:
    shell.run("send", "a", "1")
    assert "\x1b[1m" in read_in_a_terminal(shell)
    assert "\x1b[3" not in read_in_a_terminal(shell, NO_COLOR="1")
    assert "\x1b" not in shell.run("read", "a").stdout


def test_a_line_is_cut_at_the_edge_of_a_terminal_and_whole_in_a_pipe(shell: Shell) -> None:
    shell.run("send", "a", json.dumps("x" * 200))
    assert "x" * 200 in shell.run("read", "a").stdout
    cut = read_in_a_terminal(shell, NO_COLOR="1", COLUMNS="60")
    assert "…" in cut
    assert len(cut.splitlines()) == 1


def read_in_a_terminal(shell: Shell, **environment: str) -> str:
    """What `runtime read a` prints into a terminal."""
    ours, theirs = os.openpty()
    process: subprocess.Popen[str] = shell.start(
        "read", "a", stdout=theirs, TERM="xterm-256color", **environment
    )
    os.close(theirs)
    printed = b""
    try:
        while chunk := os.read(ours, 4096):
            printed += chunk
    except OSError:
        pass  # How Linux says that the other end is closed.
    finally:
        os.close(ours)
    process.communicate(timeout=SECONDS)
    return printed.decode()
