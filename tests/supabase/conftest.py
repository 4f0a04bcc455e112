"""The Supabase CLI as npm has it, over databases such as a project's."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.node import installed

SUPABASE = Path(__file__).parents[2] / "supabase"

Cli = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder with a copy of our `supabase/`, since the CLI keeps notes in it."""
    shutil.copytree(SUPABASE, tmp_path / "supabase", ignore=shutil.ignore_patterns(".temp", ".branches"))
    return tmp_path


@pytest.fixture
def supabase(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Runs one command of the CLI in the project, without a terminal; returns what it printed."""
    program = installed() / "node_modules/.bin/supabase"
    environment = {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PATH": os.environ["PATH"],
        "DO_NOT_TRACK": "1",
    }

    def run(*arguments: str, database: str) -> str:
        done = subprocess.run(
            [program, *arguments, f"--remote={database}", "--yes", "--agent=no"],
            cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run
