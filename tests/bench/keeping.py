"""Where do results stay? In a folder, as JSON and as pictures; written as they come, so that none is lost."""

import json
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.bench.bars import BARS
from tests.bench.environments import base_python
from tests.bench.plots import draw
from tests.bench.sample import Results, Sample
from tests.bench.server import SETTINGS


class Keeping:
    """A folder with results.json and the plots.

    Args:
        folder: made when missing.
        add: count new runs with those that are there of the same figure, instead of replacing them.
    """

    def __init__(self, folder: Path, *, add: bool) -> None:
        self._folder = folder
        self._add = add
        self._before = self._read()

    def keep(self, samples: Iterable[Sample]) -> None:
        """Write these, and what was there before this run."""
        results = Results(samples)
        results = self._before.joined_by(results) if self._add else self._before.replaced_by(results)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(to_json(results), indent=1, sort_keys=True) + "\n")
        draw(results, self._folder)

    @property
    def _file(self) -> Path:
        return self._folder / "results.json"

    def _read(self) -> Results:
        if not self._file.exists():
            return Results()
        return Results(Sample(**each) for each in json.loads(self._file.read_text())["samples"])


def to_json(results: Results) -> dict[str, Any]:
    """The results, with what they were measured on."""
    bars = [
        {"text": bar.text, "reached": reached, "limit": bar.limit, "met": bar.is_met(results)}
        for bar in BARS
        if (reached := bar.ratio(results)) is not None
    ]
    return {
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {
            "system": platform.platform(),
            "python": Path(base_python()).name,
            "postgres settings": SETTINGS,
        },
        "bars": bars,
        "samples": [sample.as_json() for sample in results.samples],
    }
