"""What is shipped: a wheel with `runtime` and the migrations alone, which works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.cli.shell import Ended

ROOT = Path(__file__).parents[1]
SECONDS = 400


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built out of it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    return folder


class Installed:
    """The wheel in an environment of its own; what it depends on comes from the environment of the tests."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        run = [sys.executable, "-m"]
        subprocess.run([*run, "venv", "--without-pip", str(folder / "env")], check=True, timeout=SECONDS)
        self._scripts = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        install = [
            "pip",
            "--python",
            str(self._scripts / "python"),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
        ]
        subprocess.run([*run, *install, str(wheel)], check=True, timeout=SECONDS)
        packages = self.run(
            "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
        ).stdout.strip()
        # A path within a .pth file is only a path: the editable install of the checkout in there stays inactive.
        Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, program: str, *arguments: str) -> Ended:
        """Run a program of the environment, outside of the checkout."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SUPABASE_"))
        }
        ended = subprocess.run(
            [self._scripts / program, *arguments], cwd=self.folder, stdin=subprocess.DEVNULL,
            env={**kept, "RUNTIME_LOCAL_DIR": str(self.folder / "stack")},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def installed(built: Path) -> Iterator[Installed]:
    (wheel,) = built.glob("*.whl")
    folder = Path(tempfile.mkdtemp(prefix="elsewhere-test-"))
    # The account of PostgreSQL must get through it, unlike through pytest's own.
    folder.chmod(0o755)
    yield Installed(folder, wheel)
    shutil.rmtree(folder)


def test_the_wheel_holds_the_package_and_the_migrations_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "runtime").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    migrations = {f"runtime/migrations/{path.name}" for path in (ROOT / "supabase" / "migrations").iterdir()}
    assert names == package | migrations
    assert "runtime/py.typed" in names


def test_the_sdist_holds_what_builds_tests_and_explains_it(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert tops >= {
        "runtime",
        "supabase",
        "tests",
        "docs",
        "README.md",
        "LICENSE",
        "pyproject.toml",
    }
    assert tops <= {*os.listdir(ROOT), "PKG-INFO"}


def test_installed_elsewhere_it_starts_a_stack_with_its_own_migrations(installed: Installed) -> None:
    where = installed.run("python", "-c", "import runtime; print(runtime.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed.folder)
    assert installed.run("runtime", "--version").stdout.startswith("agent-runtime ")
    started = installed.run("runtime", "local", "start", "--port", "0", "--db-port", "0")
    try:
        assert started.code == 0, started.stderr
        assert installed.run("runtime", "send", "task.output", "1").stdout == "#1 task.output\n"
    finally:
        assert installed.run("runtime", "local", "stop").code == 0
    assert installed.run("runtime", "local", "status").code == 1


def test_installed_elsewhere_the_demo_runs_with_the_agents_that_ship(installed: Installed) -> None:
    ended = installed.run("runtime", "demo")
    assert ended.code == 0, ended.stderr
    assert "56 from 13 notes" in ended.stdout
    assert (installed.folder / "site" / "index.html").is_file()
