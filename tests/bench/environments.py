"""Where do the peers live? Each in a virtual environment of its own, made once and kept in the user's cache."""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

from tests.bench.contestants import OURS, contestant

ROOT = Path(__file__).parents[2]
_OLDEST = (3, 12)
"""The oldest Python on which all the peers run; one Python for everybody."""


class PeerMissing(Exception):
    """A peer cannot be had on this machine."""


def python_of(name: str) -> Path:
    """The Python that has this contestant installed; makes its environment when there is none.

    Raises:
        PeerMissing: pip or npm could not install it; with its last words.
    """
    if name == OURS and base_python() == sys.executable:
        return Path(sys.executable)
    folder = _folder_of(name)
    if not folder.exists():
        _make(name, folder)
    return folder / "bin" / "python"


def packages_of(name: str) -> Path:
    """The folder that npm has installed the packages of a contestant into, beside its Python."""
    return _folder_of(name) / "node"


def _folder_of(name: str) -> Path:
    wanted = [base_python(), *_requirements_of(name), *_packages_of(name)]
    version = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    return cache_folder() / f"{name}-{version}"


def _requirements_of(name: str) -> tuple[str, ...]:
    return _our_requirements() if name == OURS else contestant(name).requirements


def _packages_of(name: str) -> tuple[str, ...]:
    return () if name == OURS else getattr(contestant(name), "packages", ())


def cache_folder() -> Path:
    """The folder of the environments: may be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "agent-runtime-bench"


@cache
def base_python() -> str:
    """A Python that all contestants can run on: this one if it is new enough, else one that is found.

    BENCH_PYTHON names another.
    """
    if sys.version_info >= _OLDEST or "BENCH_PYTHON" in os.environ:
        return os.environ.get("BENCH_PYTHON", sys.executable)
    names = [shutil.which(f"python3.{minor}") for minor in (12, 13, 14)]
    found = [
        *filter(None, names),
        *map(str, sorted(Path.home().glob(".pyenv/versions/3.1[2-9]*/bin/python3"))),
    ]
    for candidate in found:
        check = f"import sys; sys.exit(sys.version_info < {_OLDEST})"
        if subprocess.run([candidate, "-c", check], capture_output=True, check=False).returncode == 0:
            return candidate
    return sys.executable


def _make(name: str, folder: Path) -> None:
    print(f"making an environment for {name} in {folder}", file=sys.stderr)
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([base_python(), "-m", "venv", unfinished], check=True)
    python = str(unfinished / "bin" / "python")
    commands = [[python, "-m", "pip", "install", "--quiet", *_requirements_of(name)]]
    if packages := _packages_of(name):
        node = str(unfinished / "node")
        commands.append(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", node, *packages]
        )
    for command in commands:
        if (words := _failure_of(command)) is not None:
            shutil.rmtree(unfinished)
            raise PeerMissing(f"{name} could not be installed: {words}")
    try:
        unfinished.rename(folder)
    except OSError:
        # Somebody else was quicker.
        shutil.rmtree(unfinished)


def _failure_of(command: list[str]) -> str | None:
    """Run a command; returns its last words where it fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"there is no {command[0]}"
    return None if answer.returncode == 0 else answer.stderr.strip()[-500:]


@cache
def _our_requirements() -> tuple[str, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # The measure of adapters runs an agent of Pydantic AI.
    return (*project["dependencies"], *project["optional-dependencies"]["pydantic-ai"])
