"""Tables and the screen of `top`, at the widths of a phone, a terminal and a wide window, and in a pipe."""

import os
import pty
import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console, RenderableType

from runtime.cli import schedules, status, subscriptions, webhooks
from runtime.cli.output import Terminal
from runtime.cli.top import picture
from runtime.cli.top_view import TopView
from tests.cli.shell import SECONDS, Shell

ERROR = "ValueError: " + "no such order, " * 30
LONG = "summarizer_of_articles.summarise_and_publish"


def subscription(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "patterns": ["note.found", "note.imported.from.elsewhere"], "workers": 1, "waiting": 12_345,
        "running": 3, "scheduled": 7, "suspended": 5, "undoing": 0, "dead": 2, "lag_seconds": 90.0,
        "done_last_minute": 61, "failed_last_minute": 4, "paused": False, "settled": True, "blocked": 0,
        "last_error": None, **more,
    }  # fmt: skip


FAILED = subscription(LONG, paused=True, last_error={"at": "2026-01-01T00:00:00+00:00", "error": ERROR})
FOUND = [subscription("writer.write"), FAILED]
TABLES = {
    "subscriptions": subscriptions._table(FOUND),
    "status": status._subscriptions({"subscriptions": FOUND}),
    "schedules": schedules._table([
        {
            "name": "clock.strike", "key": "morning.bell", "spec": "cron 0 7 * * * Europe/Berlin", "paused": True,
            "last_slot": "2026-01-01T00:00:00+00:00", "next": ["2099-01-01T07:00:00+00:00"], "workers": 12_345,
        },
    ]),
    "webhooks": webhooks._table([
        {
            **subscription(LONG), "url": "https://example.com/hooks/" + "a" * 60, "emits": "note.answered",
            "state": "failing", "rests_seconds": None, "last_error": ERROR, "succeeded_at": None,
        },
    ]),
}  # fmt: skip
# What no width may lose: the heads of the columns, and what stands in them.
PARTS = {
    "subscriptions": ["workers", "waiting", "12,345", "running", "scheduled", "suspended", "dead", "lag", "90 s",
                      "per min", "61", "paused", "patterns", "note.found",
                      "note.imported.from.elsewhere", "last error", "ValueError"],
    "status": ["workers", "waiting", "12,345", "running", "scheduled", "suspended", "dead", "lag", "90 s",
               "paused", "patterns", "note.found", "note.imported.from.elsewhere"],
    "schedules": ["clock.strike", "last slot", "next", "01 Jan 2099", "workers", "12,345", "paused", "schedule",
                  "0 7 * * * Europe/Berlin", "morning.bell"],
    "webhooks": ["workers", "waiting", "12,345", "running", "scheduled", "last success", "failing", "patterns",
                 "note.imported.from.elsewhere", "emits", "note.answered", "https://example.com/hooks/", "last error"],
}  # fmt: skip


def drawn(table: RenderableType, width: int) -> list[str]:
    console = Console(width=width, force_terminal=True, no_color=True, file=StringIO(), highlight=False)
    with console.capture() as capture:
        console.print(table)
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).splitlines()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_table_keeps_all_its_columns_at_any_width(name: str, width: int) -> None:
    lines = drawn(TABLES[name], width)
    assert max(map(len, lines)) <= width, "\n".join(lines)
    whole = " ".join(" ".join(lines).split())
    lacking = [
        part
        for part in PARTS[name]
        if part not in whole and not (width == 40 and part in ("last success", "ValueError"))
    ]
    assert not lacking, "\n".join(lines)
    if name in ("subscriptions", "status"):
        assert LONG in "".join(line.strip() for line in lines)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_in_a_pipe_has_one_whole_line_a_row(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().print(TABLES[name])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(TABLES[name])
    assert all(part in "\n".join(lines) for part in PARTS[name])
    if name in ("subscriptions", "webhooks"):
        assert ERROR.strip() in lines[-1]


def test_figures_stand_below_each_other_where_texts_have_no_room() -> None:
    head, *rows = drawn(TABLES["subscriptions"], 80)
    figures = [line for line in rows if "12,345" in line]
    assert [line.index("12,345") + 6 for line in figures] == [head.index("waiting") + 7] * 2
    # One long error takes no room from the other rows, and ends at the edge.
    (error,) = [line for line in rows if "last error" in line]
    assert (len(error), error[-1]) == (80, "…")


STATS: dict[str, Any] = {
    "dead_letters": 1,
    "workers": [],
    "subscriptions": [
        *(
            subscription(f"old.n{number}", workers=0, waiting=0, running=0, scheduled=0, suspended=0)
            for number in range(40)
        ),
        subscription("busy.one", done_last_minute=600),
        subscription("late.one", lag_seconds=9_000.0, failed_last_minute=0),
    ],
}


def names(view: TopView) -> list[str]:
    return [each["name"] for each in view.choose(STATS["subscriptions"], 0)[0]]


def test_columns_of_zeros_make_room_for_a_table_before_rows_become_paragraphs() -> None:
    idle = subscription("mailer.send_reply", waiting=0, scheduled=0, suspended=0, lag_seconds=None)
    stats = {
        **STATS,
        "subscriptions": [idle, {**idle, "name": "intake.open_ticket", "failed_last_minute": 0}],
    }
    lines = drawn(picture("https://example.supabase.co", stats, TopView(height=24)), 80)
    (head,) = [line for line in lines if line.startswith("subscription")]
    assert head.split() == ["subscription", "workers", "running", "dead", "done/s", "failed/min", "state"]
    assert sum(line.startswith(("mailer.", "intake.")) and "1.0" in line for line in lines) == 2


def test_top_shows_workers_and_what_is_left_out_where_a_row_takes_several_lines() -> None:
    worker = {"name": "host-1", "running": 1, "details": {}, "seen_seconds": 1, "announce": ["realtime"]}
    full = [subscription(f"n{each}.{LONG}") for each in range(20)]
    stats = {"dead_letters": 0, "workers": [worker], "subscriptions": full}
    console = Console(width=80, file=StringIO())
    lines = drawn(picture("https://example.supabase.co", stats, TopView(height=24), console=console), 80)
    assert 20 <= len(lines) <= 24
    assert any(line.startswith("host-1") for line in lines)
    assert any(line.startswith("… and ") for line in lines)


def test_top_sorts_filters_pauses_and_quits_by_keys() -> None:
    view = TopView(height=24)
    assert names(view) == ["busy.one", "late.one"]
    assert view.choose(STATS["subscriptions"], 0)[1] == "… and 40 subscriptions without workers and work"
    for key in "ss":
        view.press(key)
    assert (view.order, names(view)) == ("lag", ["late.one", "busy.one"])
    for key in "/LATE.qp\x7f\x7f\n":
        view.press(key)
    assert (view.filter, view.is_over, view.is_paused, names(view)) == ("LATE.", False, False, ["late.one"])
    assert "/ filter: LATE." in view.legend()
    view.press("\x1b[A")
    assert view.filter == "LATE."
    for key in ("\x1b", "a"):
        view.press(key)
    # What has no room is counted, and the legend stays on the screen.
    assert len(names(view)) == 16
    assert view.choose(STATS["subscriptions"], 0)[1] == "… and 26 more"
    view.press("p")
    assert "paused" in view.legend()
    view.press("q")
    assert view.is_over


@pytest.mark.parametrize("width", [40, 80, 160])
def test_top_fits_its_screen(width: int) -> None:
    lines = drawn(picture("https://example.supabase.co", STATS, TopView(height=24)), width)
    assert max(map(len, lines)) <= width
    assert any("q quit" in line for line in lines)
    assert "12,345" in " ".join(lines)


def test_a_real_screen_obeys_keys(shell: Shell) -> None:
    ours, theirs = pty.openpty()
    process = shell.start("top", stdin=theirs, stdout=theirs, TERM="xterm-256color", COLUMNS="80", LINES="24")
    os.close(theirs)
    screen = ""

    def wait_for(text: str) -> None:
        nonlocal screen
        while text not in screen:
            screen += os.read(ours, 4096).decode(errors="ignore")
        screen = screen[screen.index(text) + len(text) :]

    try:
        wait_for("sort: busiest")
        os.write(ours, b"s/wri")
        wait_for("/wri_")
        os.write(ours, b"\np")
        wait_for("sort: waiting  / filter: wri, Esc clears it  p go on (paused)")
        os.write(ours, b"q")
        # The screen before comes back.
        wait_for("\x1b[?1049l")
    finally:
        os.close(ours)
    assert process.wait(SECONDS) == 0
