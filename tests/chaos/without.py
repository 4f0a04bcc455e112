"""`python -m tests.chaos.without`: does the suite notice when a mechanism is missing?

Each mechanism is switched off in a scratch copy of the project, and the same campaign is run with it and without it.
Where two mechanisms stand in for each other, the other one is switched off in both runs.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.chaos.stage import ROOT

_MIGRATIONS = "supabase/migrations"
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".hypothesis", ".*_cache")


@dataclass(frozen=True, slots=True)
class Mechanism:
    """What is switched off, and under which faults it is missed.

    Attributes:
        edits: (file, what it says, what it says without the mechanism).
        options: of the campaign, in both runs.
        without: further options of the run without it.
    """

    name: str
    edits: Sequence[tuple[str, str, str]]
    options: Sequence[str]
    without: Sequence[str] = ()


_NO_SWEEP = ("--worker", "RUNTIME_SWEEP_SECONDS=3600")
_NO_CANARY = ("--worker", "RUNTIME_NONCE_SECONDS=3600")
_LONG = ("--seconds", "40", "--messages", "600", "--work", "2", "--settle", "60")
_SHORT = ("--seconds", "20", "--messages", "900", "--settle", "30")
_QUIET = ("--seconds", "20", "--messages", "120", "--settle", "20")

MECHANISMS = (
    Mechanism(
        "fence",
        [(f"{_MIGRATIONS}/20261101002200_report_attempts.sql",
          "r.subscription and d.lease = r.lease offset 0\n        ) l on true\n    ), gone as (",
          "r.subscription offset 0\n        ) l on true\n    ), gone as (")],
        ["--setting", "both/direct", "--fault", "worker SIGSTOP", *_LONG],
    ),
    Mechanism(
        "renewal",
        [("runtime/worker/leases.py", "return bool(self.held) and now >=", "return False and bool(self.held) and now >=")],
        ["--setting", "both/direct", "--fault", "frames forged", "--seconds", "20", "--messages", "300", "--work", "6",
         "--settle", "60"],
    ),
    Mechanism(
        "safety sweep", [],
        ["--setting", "both/rest", "--fault", "hints lost, nonces not", "--hold", *_NO_CANARY, *_QUIET],
        without=_NO_SWEEP,
    ),
    Mechanism(
        "canary", [],
        ["--setting", "both/rest", "--fault", "subscription gone deaf", *_NO_SWEEP, *_QUIET],
        without=_NO_CANARY,
    ),
    Mechanism(
        "atomic emits",
        [("runtime/store/__init__.py",
          "        given = {name: value for name, value in exchange.arguments().items()",
          """        from dataclasses import replace
        for report in exchange.done:
            for emit in report.emits:
                await self._persist("stream_send", {"messages": f"[{emit}]"}, repeatable=False)
        exchange = replace(exchange, done=[replace(report, emits=()) for report in exchange.done])
        given = {name: value for name, value in exchange.arguments().items()""")],
        ["--setting", "both/rest", "--fault", "worker SIGKILL",
         "--fault", "REST answer lost after its effect", *_SHORT],
    ),
    Mechanism(
        "one culprit, never a crowd",
        [("runtime/worker/exchanger.py", "if doubt is None and _is_loaded(look) and attempt >=", "if False and attempt >=")],
        ["--setting", "both/rest", "--fault", "front refuses larger bodies", "--hold", *_QUIET],
    ),
    Mechanism(
        "the shape of answers",
        [("runtime/store/supabase.py", "if wrong := mismatch(function, arguments, answer):", "if False:"),
         ("runtime/store/supabase.py", "raise foreign(wrong,", "raise foreign('',")],
        ["--setting", "both/rest", "--fault", "front answers in its place", *_QUIET],
    ),
    Mechanism(
        "dedup",
        [(f"{_MIGRATIONS}/20261101001200_send_messages.sql",
          "    sent := runtime.store(messages);",
          "    messages := (select jsonb_agg(m - 'dedup_key') from jsonb_array_elements(messages) as m);\n"
          "    sent := runtime.store(messages);")],
        ["--setting", "both/rest", "--fault", "REST answer lost after its effect", *_SHORT],
    ),
    Mechanism(
        "one tick a slot",
        [(f"{_MIGRATIONS}/20261101003600_keep_schedules.sql", "if s.last_slot = after and reached", "if reached"),
         (f"{_MIGRATIONS}/20261101003600_keep_schedules.sql",
          "'dedup_key', 'tick ' || s.name || ' ' || (t ->> 'slot'),\n", "\n")],
        ["--setting", "both/rest", "--fault", "worker SIGKILL", "--fault", "REST answer lost after its effect",
         "--feature", "timers", *_QUIET],
    ),
    Mechanism(
        "one id for all attempts",
        [("runtime/webhooks/sender.py",
          'f"msg_{message.idempotency_key}_', 'f"msg_{message.idempotency_key}_{message.attempt}_')],
        ["--setting", "both/rest", "--fault", "worker SIGKILL", "--fault", "REST answer lost after its effect",
         "--feature", "outgoing", *_QUIET],
    ),
    Mechanism(
        "a retry finds what it asked",
        [("runtime/worker/execution/handler_requests.py",
          "dedup_key=question,", 'dedup_key=__import__("uuid").uuid4().hex,')],
        ["--setting", "both/direct", "--fault", "worker SIGKILL", "--fault", "socket reset", "--fault", "frames forged",
         "--feature", "requests", *_QUIET],
    ),
    Mechanism(
        "a message lets go who waits for it",
        [(f"{_MIGRATIONS}/20261101002800_keep_waits.sql",
          "        perform runtime.go_on(over.ids, over.subscriptions);", "        null;")],
        ["--setting", "both/direct", "--fault", "worker SIGKILL", "--fault", "socket reset", "--fault", "frames forged",
         "--feature", "waits", *_QUIET],
    ),
    Mechanism(
        "what is finished is undone when it dies",
        [(f"{_MIGRATIONS}/20261101002850_undo_steps.sql",
          "elsif runtime.has_undos(one.id, one.subscription) then", "elsif false then")],
        ["--setting", "both/direct", "--fault", "worker SIGKILL", "--fault", "socket reset", "--fault", "frames forged",
         "--feature", "sagas", *_QUIET],
    ),
    Mechanism(
        "the last step is undone first",
        [("runtime/worker/execution/handler_undos.py", "in reversed(delivery.undos):", "in delivery.undos:")],
        ["--setting", "both/direct", "--fault", "worker SIGKILL", "--fault", "socket reset", "--fault", "frames forged",
         "--feature", "sagas", *_QUIET],
    ),
    Mechanism(
        "a handler's own statements are committed with its end",
        [("runtime/worker/execution/attempt.py", "await finish(report)", "await context._transaction._begun.commit()")],
        ["--setting", "both/direct", "--fault", "worker SIGKILL", "--fault", "connections terminated",
         "--feature", "bookings", *_QUIET, "--seconds", "40"],
    ),
    Mechanism(
        "a request is stored once",
        [("runtime/client/requester.py",
          'dedup_key=check_dedup_key(options.get("dedup_key")) or dedup_key,', "dedup_key=None,")],
        ["--setting", "both/rest", "--fault", "REST answer lost after its effect", "--feature", "requests", *_QUIET],
    ),
    Mechanism(
        "one of a batch fails alone",
        [("runtime/worker/execution/batching.py", "        self._note_failed(seconds)\n        for delivery in self.valid:",
          "        for delivery in self.valid:")],
        ["--setting", "both/rest", "--fault", "worker SIGKILL", "--fault", "REST answer lost after its effect",
         "--feature", "batches", *_QUIET],
    ),
    Mechanism(
        "a webhook known again",
        [("runtime/webhooks/receiver.py", "    if len(whole) <= MAX_DEDUP_CHARACTERS and",
          '    whole += __import__("uuid").uuid4().hex\n    if len(whole) <= MAX_DEDUP_CHARACTERS and')],
        ["--setting", "both/rest", "--fault", "REST answer lost after its effect", "--feature", "incoming", *_QUIET],
    ),
)  # fmt: skip


def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[MECHANISM]…", help="All of them by default.")
    ] = None,
) -> None:
    """Run each campaign with a mechanism and without it, and show which checks failed."""
    console = Console()
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("switched off", "with it", "without it: checks that failed"):
        table.add_column(column)
    unnoticed = False
    for mechanism in MECHANISMS:
        if names and mechanism.name not in names:
            continue
        console.print(f"{mechanism.name} …", style="dim")
        sound = _failed(ROOT, mechanism.options)
        with tempfile.TemporaryDirectory(prefix="agent-runtime-without-") as folder:
            scratch = Path(folder) / "project"
            shutil.copytree(ROOT, scratch, ignore=_LEFT_OUT)
            for file, rule, instead in mechanism.edits:
                text = (scratch / file).read_text()
                if text.count(rule) != 1:
                    raise SystemExit(f"{file} says {text.count(rule)} times, not once: {rule}")
                (scratch / file).write_text(text.replace(rule, instead))
            failed = _failed(scratch, [*mechanism.options, *mechanism.without])
        unnoticed = unnoticed or bool(sound) or not failed
        table.add_row(
            mechanism.name, ", ".join(sound) or "nothing failed", ", ".join(failed) or "NOTHING: not noticed"
        )
    console.print(table)
    raise SystemExit(1 if unnoticed else 0)


def _failed(project: Path, options: Sequence[str]) -> list[str]:
    """The checks that fail in one campaign."""
    command = [sys.executable, "-m", "tests.chaos", "--seed", "1", "--huge-rows", "0", "--json", *options]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    try:
        problems = json.loads(ended.stdout)["problems"]
    except ValueError:
        raise SystemExit(f"The campaign itself failed:\n{ended.stderr[-3000:]}") from None
    return sorted({f"{problem['check']} ({problem['text'][:60]})" for problem in problems})


if __name__ == "__main__":
    typer.run(main)
