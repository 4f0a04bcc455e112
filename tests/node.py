"""The npm packages of tests/javascript, installed once into a cache."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "javascript"


def installed() -> Path:
    """The folder with `node_modules`, installed as the lock file says; named by its contents."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Node is not installed: apt-get install nodejs npm")
    lock = (SOURCES / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agent-runtime-tests"
    folder = cache / f"npm-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=cache, prefix="unfinished-", ignore_cleanup_errors=True
        ) as fresh:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SOURCES / name, fresh)
            subprocess.run(
                [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=fresh, check=True, capture_output=True, timeout=300,
            )  # fmt: skip
            # Whole or not at all: another run of the tests may be installing too.
            try:
                Path(fresh).rename(folder)
            except OSError:
                if not folder.exists():
                    raise
    return folder
