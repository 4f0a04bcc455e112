"""The logs of a process, one for each run, with the previous run's kept beside."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_LINES: Final = 12
_BYTES: Final = 16_384


def begin_log(log: Path) -> None:
    """Make room for a new run: the last run's log replaces `.log.1`."""
    if log.exists():
        os.replace(log, log.with_suffix(".log.1"))


def last_lines(log: Path) -> str:
    """The end of a log, to be put under an error message; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _BYTES))
            return indented(file.read().decode(errors="replace").splitlines())
    except OSError:
        return ""


def indented(lines: Iterable[str]) -> str:
    """Return the last of these lines, each on its own line, indented."""
    return "".join(f"\n    {line}" for line in list(lines)[-_LINES:])
