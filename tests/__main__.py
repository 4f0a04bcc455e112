"""Every check there is: `python -m tests`. Arguments go to pytest."""

import compileall
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.distribution import BY_TURNS
from tests.workspace import Workspace

# Tests wait for processes to start and for leases to end, so two cores carry more than two workers. Named tests run
# one after another, as a person who names them expects.
_TESTS = sys.argv[1:] or ["--numprocesses=4", "--dist=loadfile"]

# One after another they take less time than the tests, so they run beside them.
_BESIDE = (
    ("style", ["-m", "ruff", "check", "."]),
    ("types", ["-m", "mypy"]),
    ("direction of imports", ["-c", "from importlinter.cli import lint_imports_command as run; run()"]),
)


def main() -> int:
    """Run the checks; all of them, even after one has failed."""
    with ThreadPoolExecutor(1) as beside, Workspace.opened() as workspace:
        others = {name: beside.submit(_passes, name, arguments) for name, arguments in _BESIDE}
        if not sys.argv[1:]:
            os.environ[BY_TURNS] = "yes"
            _compile()
        passed = {"tests": _passes("tests", ["-m", "pytest", *_TESTS], workspace)}
        left = workspace.end_processes()
        passed["no process left behind"] = not left
        print(*(f"\nleft behind: {each}" for each in left), flush=True)
        passed |= {name: check.result() for name, check in others.items()}
    failed = [name for name, is_passed in passed.items() if not is_passed]
    if failed:
        print(f"\nfailed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def _compile() -> None:
    """Write the bytecode of the package and of the tests, also where the environment asks Python not to write it.

    Else each of the processes that the tests start compiles the modules it loads, which is a fifth of its start, and
    each pytest worker rewrites every assertion: 15 s instead of 7 s for its collection.
    """
    subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "--quiet"],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        # What cannot be collected is told by the tests.
        stdout=subprocess.DEVNULL,
        check=False,
    )
    for folder in ("runtime", "tests"):
        compileall.compile_dir(Path(__file__).parents[1] / folder, quiet=1)


def _passes(name: str, arguments: Sequence[str], workspace: Workspace | None = None) -> bool:
    """Run one check: the tests as they print, any other with its output at its end, in one piece."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **({"TMPDIR": str(workspace.folder)} if workspace else {})},
        stdout=None if workspace else subprocess.PIPE,
        stderr=None if workspace else subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(f"\n{ended.stdout or ''}== {name}: {time.monotonic() - began:.0f} s", flush=True)
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
