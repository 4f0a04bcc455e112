"""The quick form: about a minute of every fault, over every push path and both stores, by a schedule drawn anew."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def test_g1_to_g11_nothing_is_lost_and_nothing_done_twice_while_everything_breaks() -> None:
    # What crashed its worker twice runs alone, one after another.
    command = ["--json", "--seconds", "42", "--messages", "3000", "--huge-rows", "1000", "--settle", "120"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stdout, ended.stderr[-4000:]
    outcome: dict[str, Any] = json.loads(ended.stdout)
    assert outcome["problems"] == [], (outcome["seed"], ended.stderr[-4000:])
    assert ended.returncode == 0
    # It did happen.
    assert len(outcome["settings"]) == 6
    assert outcome["chains"] >= 500
    assert outcome["deliveries"] >= 5 * 500 + 6000
    assert sum(fault["strikes"] for fault in outcome["faults"]) >= 12


def test_an_unknown_fault_is_refused_with_those_there_are() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--fault", "plague"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "worker SIGKILL" in " ".join(ended.stderr.replace("│", " ").split())
