"""What an operator types, on a stream where something must be mended."""

import json
import sys
from dataclasses import replace
from typing import Any

import anyio
import pytest

from tests.cli.shell import Ended, Shell, error_line, usage_error
from tests.kernel.driver import Worker, connected, send

HOUR = 3600


@pytest.fixture
def mess(stack: Any) -> list[int]:
    """Three messages: one is a dead letter of `a.one` twice over, one waits, one is done; returns their ids."""

    async def make() -> list[int]:
        async with connected(stack.admin_url) as connection:
            worker = Worker(connection)
            await worker.subscribe("a.one=task.*", "b.two=task.done")
            ids = await send(connection, ("task.dead", {"n": 1}), ("task.done", 2), ("task.waits", 3))
            taken = await worker.take()
            for each in taken:
                if each.id == ids[0]:
                    await worker.fail(
                        each,
                        outcome="dead",
                        reason="rejected",
                        error="ValueError: \x1b[31mno",
                        traceback="T:\n  here",
                    )
                elif each.id == ids[1]:
                    await worker.finish(each)
                else:
                    await worker.fail(each, outcome="released")
            await connection.execute("update runtime.workers set seen_at = seen_at - interval '1 h'")
            # The last minute lasts as long as the test.
            await connection.execute("update runtime.runs set ended_at = ended_at + interval '1 h'")
            return ids

    return anyio.run(make)


def lines(ended: Ended) -> list[Any]:
    """The JSON lines a command printed."""
    assert ended.code == 0, ended
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("runtime pause ", {"a.one", "b.two"}),
        ("runtime replay b", {"b.two"}),
        ("runtime subscriptions remove a.", {"a.one"}),
        ("runtime dead list --subscription a", {"a.one"}),
        ("runtime tail task.", {"task.*", "task.dead", "task.done", "task.waits"}),
        ("runtime send task.d", {"task.dead", "task.done"}),
        ("runtime send --agent ", {"a", "b"}),
        ("runtime read nothing.", set()),
    ],
)
def test_a_shell_completes_what_the_stream_knows(
    shell: Shell, mess: list[int], typed: str, offered: set[str]
) -> None:
    answer = completed(shell, typed)
    assert (set(answer.stdout.split()), answer.stderr) == (offered, "")


_PATIENT = """
import runtime.cli.completion
runtime.cli.completion._PATIENCE_SECONDS = 120.0
from runtime.cli import main
main()
"""


def completed(shell: Shell, typed: str, **environment: str) -> Ended:
    """What bash is told when Tab is pressed after this, by somebody who waits for as long as a busy machine takes."""
    words = str(len(typed.split(" ")) - 1)
    patient = replace(shell, command=(sys.executable, "-c", _PATIENT))
    return patient.run(_RUNTIME_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=words, **environment)


@pytest.mark.parametrize(
    "stream",
    [
        {},
        {"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SERVICE_ROLE_KEY": "wrong"},
        {"DATABASE_URL": "postgresql://nobody@127.0.0.1:9/nothing"},
        {"SUPABASE_URL": "no url"},
    ],
)
def test_without_a_stream_nothing_is_completed_and_nothing_said(
    nowhere: Shell, stream: dict[str, str]
) -> None:
    answer = completed(nowhere, "runtime pause ", **stream)
    assert (answer.stdout.strip(), answer.stderr) == ("", "")


def test_dead_letters_are_listed_shown_redriven_and_discarded(shell: Shell, mess: list[int]) -> None:
    (letter,) = lines(shell.run("dead", "list", "--json"))
    assert (letter["subscription"], letter["message_id"], letter["attempt_count"]) == ("a.one", mess[0], 1)
    listed = shell.run("dead", "list", "--subscription", "a.one", "--key", "task.*", "--error", "VALUE")
    assert f"#{mess[0]}" in listed.stdout
    assert r"ValueError: \x1b[31mno" in listed.stdout
    assert "\x1b" not in listed.stdout
    assert "no such dead letters" in shell.run("dead", "list", "--older-than", "1h").stderr

    shown = shell.run("dead", "show", str(letter["id"])).stdout
    for part in ("a.one", "rejected", "task.dead", '{"n":1}', "attempt 1: dead", "T:\n    here"):
        assert part in shown
    assert lines(shell.run("dead", "show", str(letter["id"]), "--json"))[0]["message"]["value"] == {"n": 1}
    assert "There is no dead letter 999" in error_line(shell.run("dead", "show", "999"))

    assert "say which dead letters" in usage_error(shell.run("dead", "redrive", "--yes"))
    assert "is no span of time" in usage_error(shell.run("dead", "redrive", "--older-than", "soon"))
    preview = shell.run("dead", "redrive", "--subscription", "a.one", "--dry-run")
    assert (preview.code, preview.stdout.split()) == (0, ["1", "a.one"])
    unasked = shell.run("dead", "redrive", "--subscription", "a.one")
    assert unasked.code == 2
    assert "Redrive 1 dead letter? Nobody is there to ask: say --yes" in " ".join(unasked.stderr.split())
    assert lines(shell.run("dead", "redrive", "--all", "--yes", "--json")) == [
        {"matching": {"a.one": 1}, "redriven": 1}
    ]
    assert lines(shell.run("dead", "list", "--json")) == []


def test_every_letter_of_many_is_discarded_and_no_other(shell: Shell, stack: Any) -> None:
    async def make() -> None:
        async with connected(stack.admin_url) as connection:
            worker = Worker(connection)
            await worker.subscribe("a.one=k", "b.two=k")
            await send(connection, *[("k", number) for number in range(1201)])
            taken = await worker.take(3000)
            await worker.fail(*taken, outcome="dead", error="ValueError: no")

    anyio.run(make)
    ended = shell.run("dead", "discard", "-s", "a.one", "-y")
    assert (ended.code, ended.stdout.split()) == (0, ["1,201", "a.one", "1,201", "discarded"])
    assert lines(shell.run("dead", "discard", "--all", "--dry-run", "--json")) == [
        {"matching": {"b.two": 1201}, "discarded": 0}
    ]


def test_subscriptions_are_listed_with_what_is_wrong_and_an_orphan_is_removed(
    shell: Shell, mess: list[int]
) -> None:
    one, two = lines(shell.run("subscriptions", "--json"))
    assert (one["name"], one["waiting"], one["dead"], one["workers"]) == ("a.one", 1, 1, 0)
    assert one["last_error"]["error"].startswith("ValueError")
    assert (two["done_last_minute"], two["failed_last_minute"], two["last_error"]) == (1, 0, None)
    assert one["failed_last_minute"] == 1
    table = shell.run("subscriptions", COLUMNS="160").stdout
    assert "none" in table
    assert "ValueError" in table
    assert "\x1b" not in table
    preview = shell.run("subscriptions", "remove", "a.one", "--dry-run")
    assert preview.stdout == "a.one and 1 delivery would go\n"
    assert shell.run("subscriptions", "remove", "a.one").code == 2
    assert shell.run("subscriptions", "remove", "a.one", "--yes").stdout == "a.one and 1 delivery removed\n"
    assert [each["name"] for each in lines(shell.run("subscriptions", "--json"))] == ["b.two"]
    assert "there is no subscription 'a.one'" in error_line(
        shell.run("subscriptions", "remove", "a.one", "-y")
    )


def test_what_waits_for_a_message_is_cancelled(shell: Shell, mess: list[int]) -> None:
    dead, done, waits = (str(number) for number in mess)
    assert "a.one: counts as done now" in shell.run("cancel", waits, "--as", "done").stdout
    assert f"for message {waits} of anybody: it is done, or dead" in error_line(shell.run("cancel", waits))
    assert f"for message {done} of b.two" in error_line(shell.run("cancel", done, "--handler", "b.two"))
    assert "There is no message 99999" in error_line(shell.run("cancel", "99999"))
    assert "there is no subscription 'x.y'" in error_line(shell.run("cancel", dead, "--handler", "x.y"))
    shell.run("replay", "a.one", "--message", waits, "--yes")
    (answer,) = lines(shell.run("cancel", waits, "--json"))
    assert answer["deliveries"] == [{"subscription": "a.one", "state": "ended"}]
    assert [letter["reason"] for letter in lines(shell.run("dead", "list", "--json"))] == [
        "cancelled",
        "rejected",
    ]


def test_a_subscription_is_paused_and_resumed(shell: Shell, mess: list[int]) -> None:
    assert "a.one is paused" in shell.run("pause", "a.one").stdout
    assert "paused" in shell.run("subscriptions", COLUMNS="160").stdout
    assert "goes on" in shell.run("resume", "a.one").stdout
    assert [each["paused"] for each in lines(shell.run("subscriptions", "--json"))] == [False, False]
    assert "there is no subscription 'x.y'" in error_line(shell.run("pause", "x.y"))
    assert "there is no subscription 'x.y'" in error_line(shell.run("resume", "x.y"))


def test_history_is_replayed_after_a_preview(shell: Shell, mess: list[int]) -> None:
    assert "say what to replay" in usage_error(shell.run("replay", "a.one", "--yes"))
    assert "is no time" in usage_error(shell.run("replay", "a.one", "--since", "yesterday"))
    everything = lines(shell.run("replay", "a.one", "--key", ">", "--dry-run", "--json"))
    assert everything == [{"subscription": "a.one", "matching": 3, "replayed": 0}]
    assert lines(shell.run("replay", "a.one", "--since", "1h", "--dry-run", "--json")) == [
        {"subscription": "a.one", "matching": 3, "replayed": 0}
    ]
    assert "2 messages would be" not in shell.run("replay", "a.one", "--since", "1h").stdout
    done = shell.run("replay", "a.one", "--since", "1h", "--yes")
    assert done.stdout == "2 messages are due for a.one again\n"
    assert "1 was still waiting for it" in done.stderr
    one = shell.run("replay", "b.two", "--message", str(mess[1]), "--yes", "--json")
    assert lines(one) == [{"subscription": "b.two", "matching": 1, "replayed": 1}]
    nothing = shell.run("replay", "b.two", "--until", "1h", "--yes")
    assert nothing.stdout == "0 messages would be delivered to b.two again\n"


def test_old_messages_are_pruned_and_young_ones_stay(shell: Shell, stack: Any, mess: list[int]) -> None:
    async def age() -> None:
        async with connected(stack.admin_url) as connection:
            await connection.execute(
                "update consciousness_stream set created_at = created_at - interval '2 d' where id <> $1",
                mess[1],
            )

    anyio.run(age)
    assert shell.run("prune", "--older-than", "1d").code == 2
    assert lines(shell.run("prune", "--older-than", "1d", "--yes", "--json")) == [{"pruned": 2, "expired": 1}]
    assert [each["id"] for each in lines(shell.run("read", ">", "--json"))] == [mess[1]]
    # The dead letter has its own copy.
    assert len(lines(shell.run("dead", "list", "--json"))) == 1


def test_timers_are_listed_with_their_next_times(shell: Shell, stack: Any) -> None:
    assert "No agent has a timer" in shell.run("schedules").stderr

    async def declare() -> None:
        async with connected(stack.admin_url) as connection:
            worker = Worker(connection)
            await worker.subscribe("clock.strike=timer.clock.strike", "clock.ring=morning")
            timers = [
                {"name": "clock.strike", "key": "timer.clock.strike", "spec": "every 3600", "missed": "one"},
                {"name": "clock.ring", "key": "morning", "spec": "cron 0 7 * * * UTC", "missed": "all"},
                {"name": "clock.later", "key": "later", "spec": "by the moon", "missed": "all"},
            ]
            await connection.fetchval("select public.stream_schedule($1, $2)", worker.id, timers)
            await connection.fetchval("select public.stream_pause('clock.ring')")

    anyio.run(declare)
    later, ring, strike = lines(shell.run("schedules", "--json", "--next", "3"))
    assert (strike["name"], strike["workers"], strike["paused"], ring["paused"]) == (
        "clock.strike",
        1,
        False,
        True,
    )
    assert [slot[14:19] for slot in strike["next"]] == ["00:00"] * 3
    assert [slot[11:19] for slot in ring["next"]] == ["07:00:00"] * 3
    # Another release knows what that means.
    assert (later["spec"], later["next"], later["workers"]) == ("by the moon", [], 0)
    listed = shell.run("schedules").stdout
    for part in ("clock.strike", "every 1h", "morning", "0 7 * * * UTC", "paused", "none"):
        assert part in listed


def test_d4_status_tells_of_two_that_declare_one_subscription_otherwise(shell: Shell, stack: Any) -> None:
    async def declare() -> None:
        async with connected(stack.admin_url) as connection:
            for pattern in ("order.placed", "invoice.paid"):
                await Worker(connection).subscribe(f"shop.handle={pattern}")

    anyio.run(declare)
    (warning,) = json.loads(shell.run("status", "--json").stdout)["warnings"]
    assert all(each in warning for each in ("shop.handle", "order.placed", "invoice.paid"))
    assert "! shop.handle listens to invoice.paid" in shell.run("status").stdout


def test_t2_status_tells_of_a_trigger_that_is_off(shell: Shell, stack: Any) -> None:
    async def switch_off() -> None:
        async with connected(stack.admin_url) as connection:
            await connection.execute("alter table public.consciousness_stream disable trigger fan_out")

    anyio.run(switch_off)
    assert "The trigger fan_out of consciousness_stream is off or gone" in shell.run("status").stdout
