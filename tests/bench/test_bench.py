"""Does the bench measure at all? Small, of ours alone; what the figures are is nobody's business here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.bars import BARS, Bar
from tests.bench.contestants import OURS
from tests.bench.environments import ROOT
from tests.bench.measures.every import MEASURES
from tests.bench.sample import Results, Sample


def test_a_quick_run_measures_and_keeps_what_it_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--json", "--vs", "none"]
    answer = subprocess.run(
        [*command, "--only", "drain", "--into", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "BENCH_PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert {each["figure"] for each in told["samples"]} >= {"drain/1 worker", "drain/2 workers, CPU"}
    # A thousand messages may take less CPU than its smallest unit.
    assert all(each["value"] > 0 or each["unit"] == "µs each" for each in told["samples"]), told["samples"]
    (drained,) = [each for each in told["samples"] if each["figure"] == "drain/1 worker"]
    assert drained["more"]["handled"] == 1000
    assert not drained["more"]["cut off"]
    assert json.loads((tmp_path / "results.json").read_text()) == told


def test_runs_beside_which_others_took_cpu_are_left_out_where_there_are_quieter_ones() -> None:
    results = Results(
        Sample("f", "a", value, "/s", foreign) for value, foreign in ((1, 0), (3, 0.1), (90, 1))
    )
    summary = results.summary("f", "a")
    assert summary is not None
    assert (summary.value, summary.runs, summary.noisy) == (2, 2, 1)


def test_a_bar_is_a_ratio_of_medians_of_one_run() -> None:
    (bar,) = [each for each in BARS if each.text == "drain, 1 worker: of pgqueuer"]
    assert bar.is_met(Results()) is None
    results = Results(
        [Sample("drain/1 worker", OURS, 30, "/s"), Sample("drain/1 worker", "pgqueuer", 20, "/s")]
    )
    assert bar.ratio(results) == 1.5
    assert bar.is_met(results)
    newer = Results([Sample("drain/1 worker", OURS, 29, "/s")])
    # Ours of today against theirs of yesterday would be no ratio.
    assert bar.ratio(results.replaced_by(newer)) is None


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.text)
def test_each_bar_names_the_measure_that_tells(bar: Bar) -> None:
    assert bar.measure in {each.name for each in MEASURES}
